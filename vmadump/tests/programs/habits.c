// What few programs set: memory barriers, locks to come, what becomes of memory faults, policies of memory, who is told of a pipe.
// Checked all the time. The arguments say which.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_mseal
#define SYS_mseal 462
#endif
#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_MDWE_REFUSE_EXEC_GAIN 1
#endif
#define ROUNDS 6
#define MIB (1 << 20)

static void fail(const char *what) {
    printf("fail %s errno %d\n", what, errno);
    fflush(stdout);
    _exit(1);
}

static void must(int fine, const char *what) {
    if (!fine) fail(what);
}

static long status(const char *key) {
    char line[256];
    long value = -1;
    FILE *file = fopen("/proc/self/status", "re");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, key, strlen(key))) value = atol(line + strlen(key) + 1);
    if (file) fclose(file);
    return value;
}

static void *map(size_t len) {
    void *at = mmap(0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) fail("mmap");
    return at;
}

static int has(const char *what, const char *argument) { return !strcmp(what, argument); }

static char *late;
// What the kernel does not know.
static const char *refused;
static void *placed;
static int ends[2];
static volatile sig_atomic_t told;

static void count(int signal, siginfo_t *info, void *context) {
    (void)context;
    if (signal == SIGRTMIN + 5 && info->si_fd == ends[0]) told++;
}

static void policy(void *at, int wanted) {
    int mode = -1;
    unsigned long nodes[16] = {0};
    must(!syscall(SYS_get_mempolicy, &mode, nodes, 1024, at, at ? 2 : 0), "get_mempolicy");
    must(mode == wanted && (wanted == 0 || nodes[0] == 1), "another policy");
}

static void *other(void *unused) {
    must(!prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0), "PR_MCE_KILL");
    for (;;) {
        must(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_LATE, "memory faults of the other");
        policy(0, 0);
        usleep(1000);
    }
    return unused;
}

static void *last(void *unused) {
    sleep(2);
    puts("done");
    fflush(stdout);
    _exit(42);
    return unused;
}

static void set(const char *what) {
    unsigned long nodes = 1;
    if (has("barriers", what)) {
        must(!syscall(SYS_membarrier, 4, 0, 0), "register global");
        must(!syscall(SYS_membarrier, 16, 0, 0), "register private");
        must(!syscall(SYS_membarrier, 64, 0, 0), "register cores");
    } else if (has("late", what)) {
        late = map(256 * MIB);
        must(!mlock2(late, 256 * MIB, MLOCK_ONFAULT), "mlock2");
        late[0] = 1;
    } else if (has("future", what)) {
        must(!mlockall(MCL_CURRENT | MCL_FUTURE), "mlockall");
    } else if (has("futurelate", what)) {
        must(!mlockall(MCL_FUTURE | MCL_ONFAULT), "mlockall");
    } else if (has("faults", what)) {
        pthread_t thread;
        must(!prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0), "PR_MCE_KILL");
        must(!pthread_create(&thread, 0, other, 0), "thread");
    } else if (has("policy", what)) {
        placed = map(MIB);
        must(!syscall(SYS_mbind, placed, MIB / 2, 2, &nodes, 65, 0), "mbind");
        must(!syscall(SYS_set_mempolicy, 3, &nodes, 65), "set_mempolicy");
    } else if (has("told", what)) {
        struct sigaction action = {.sa_sigaction = count, .sa_flags = SA_SIGINFO | SA_RESTART};
        must(!sigaction(SIGRTMIN + 5, &action, 0), "sigaction");
        must(!pipe2(ends, O_CLOEXEC), "pipe");
        must(!fcntl(ends[0], F_SETOWN, getpid()) && !fcntl(ends[0], F_SETSIG, SIGRTMIN + 5), "owner");
        must(!fcntl(ends[0], F_SETFL, O_ASYNC | O_NONBLOCK), "O_ASYNC");
    } else if (has("first", what)) {
        pthread_t thread;
        must(!pthread_create(&thread, 0, last, 0), "thread");
        pthread_exit(0);
    } else if (has("sealed", what)) {
        if (syscall(SYS_mseal, map(MIB), MIB, 0)) refused = "mseal";
    } else if (has("strict", what)) {
        if (prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)) refused = "mdwe";
    } else {
        fail("argument");
    }
}

static void check(const char *what) {
    if (has("barriers", what)) {
        must(!syscall(SYS_membarrier, 8, 0, 0), "private barrier");
        must(!syscall(SYS_membarrier, 32, 0, 0), "barrier of cores");
        long registered = syscall(SYS_membarrier, 512, 0, 0);
        must(registered < 0 || (registered & 0x154) == 0x54, "registrations");
    } else if (has("late", what)) {
        must(status("VmLck:") >= 256 * 1024, "locked");
        must(status("VmRSS:") < 64 * 1024, "filled");
    } else if (has("future", what) || has("futurelate", what)) {
        long before = status("VmLck:"), filled = status("VmRSS:");
        char *more = map(16 * MIB);
        must(status("VmLck:") - before == 16 * 1024, "what is mapped now is not locked");
        must((status("VmRSS:") - filled >= 16 * 1024) == has("future", what), "what is mapped now");
        munmap(more, 16 * MIB);
    } else if (has("faults", what)) {
        must(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_EARLY, "memory faults");
    } else if (has("policy", what)) {
        policy(placed, 2);
        policy((char *)placed + MIB / 2, 0);
        policy(0, 3);
    } else if (has("told", what)) {
        char byte;
        int before = told;
        must(fcntl(ends[0], F_GETOWN) == getpid() && fcntl(ends[0], F_GETSIG) == SIGRTMIN + 5, "owner");
        must(write(ends[1], "x", 1) == 1, "write");
        for (int tries = 0; told == before && tries < 1000; tries++) usleep(1000);
        must(told == before + 1 && read(ends[0], &byte, 1) == 1, "not told");
    }
}

int main(int count, char **arguments) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int i = 1; i < count; i++) set(arguments[i]);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 1; i < count; i++) check(arguments[i]);
        if (refused) printf("no %s\n", refused);
        else printf("round %d\n", round);
        fflush(stdout);
        for (int pause = 0; pause < 20; pause++) {
            usleep(5000);
            for (int i = 1; i < count; i++) check(arguments[i]);
        }
    }
    puts("done");
    fflush(stdout);
    _exit(42);
}
