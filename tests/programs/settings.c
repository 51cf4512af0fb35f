// What the kernel keeps about a process and its threads beside memory, rights and descriptors, as far as it can be set:
// interval timers of CPU time, input/output priority, readiness to be killed for want of memory, personality, what a core
// dump has, names of threads, huge pages, equal pages, and the like. Set once, checked in each round.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include "../../vmadump/tests/programs/told.h"

#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE 67
#define PR_GET_MEMORY_MERGE 68
#endif

static volatile int expired[2], ending;
static char thread_looks[256];

static void fail(const char *what) {
    printf("fail %s errno %d\n", what, errno);
    fflush(stdout);
    _exit(1);
}

static void on_alarm(int signal) { expired[signal == SIGPROF]++; }

static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) fail(path);
    close(fd);
}

static char *get(const char *path, char *to, size_t room) {
    int fd = open(path, O_RDONLY);
    ssize_t n = fd < 0 ? -1 : read(fd, to, room - 1);
    if (fd >= 0) close(fd);
    to[n < 0 ? 0 : n] = 0;
    to[strcspn(to, "\n")] = 0;
    return to;
}

static void looks(char *to, size_t room) {
    char core[64], oom[64], name[64];
    struct itimerval prof, virtual;
    getitimer(ITIMER_PROF, &prof), getitimer(ITIMER_VIRTUAL, &virtual);
    snprintf(to, room, "personality %x io %lx core %s oom %s thp %d merge %d name %s prof %ld virtual %ld dumpable %d keep %d",
             personality(0xffffffff), syscall(SYS_ioprio_get, 1, 0), get("/proc/self/coredump_filter", core, sizeof core),
             get("/proc/self/oom_score_adj", oom, sizeof oom), prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0),
             prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0), get("/proc/self/comm", name, sizeof name), prof.it_interval.tv_usec,
             virtual.it_interval.tv_usec, prctl(PR_GET_DUMPABLE), prctl(PR_GET_KEEPCAPS));
}

static void own(char *to, size_t room) {
    char name[32];
    prctl(PR_GET_NAME, name);
    snprintf(to, room, "name %s io %lx nice %d slack %d", name, syscall(SYS_ioprio_get, 1, 0),
             getpriority(PRIO_PROCESS, 0), prctl(PR_GET_TIMERSLACK));
}

static void *thread(void *unused) {
    (void)unused;
    prctl(PR_SET_NAME, "second");
    if (syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6)) fail("ioprio of a thread");
    // Upwards from wherever it was started: a user may not go down.
    int nice = getpriority(PRIO_PROCESS, 0) + 3;
    if (setpriority(PRIO_PROCESS, 0, nice > 19 ? 19 : nice)) fail("nice of a thread");
    prctl(PR_SET_TIMERSLACK, 77777);
    own(thread_looks, sizeof thread_looks);
    while (!ending) {
        char now[256];
        own(now, sizeof now);
        if (strcmp(now, thread_looks)) {
            printf("thread: was %s, is %s\n", thread_looks, now);
            fail("a thread is other");
        }
        usleep(1000);
    }
    return 0;
}

int main(int argc, char **argv) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    wait_to_be_told();
    signal(SIGVTALRM, on_alarm), signal(SIGPROF, on_alarm);
    if (personality(ADDR_NO_RANDOMIZE | UNAME26) < 0) fail("personality");
    if (syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 1)) fail("ioprio");
    put("/proc/self/coredump_filter", "0x7f");
    put("/proc/self/oom_score_adj", "321");
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    // Since Linux 6.4.
    prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0);
    if (argc > 1) {
        int user = atoi(argv[1]);
        if (setgid(user) || setuid(user)) fail("become another");
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        prctl(PR_SET_DUMPABLE, 1);
    } else {
        prctl(PR_SET_KEEPCAPS, 1);
    }
    prctl(PR_SET_NAME, "a name's 15 byt");
    struct itimerval prof = {{0, 20000}, {0, 20000}}, virtual = {{0, 30000}, {0, 30000}};
    setitimer(ITIMER_PROF, &prof, 0), setitimer(ITIMER_VIRTUAL, &virtual, 0);
    pthread_t other;
    static char first[1024], now[1024];
    if (pthread_create(&other, 0, thread, 0)) fail("thread");
    looks(first, sizeof first);
    int before[2] = {0, 0};
    for (int round = 0; !is_told(); round++) {
        printf("round %d\n", round);
        fflush(stdout);
        // Until both have gone off: they count this process's own time.
        while (expired[0] == before[0] || expired[1] == before[1])
            for (volatile int i = 0; i < 100000; i++)
                ;
        before[0] = expired[0], before[1] = expired[1];
        usleep(50000);
        looks(now, sizeof now);
        if (strcmp(first, now)) {
            printf("was %s\nis  %s\n", first, now);
            fail("something is other");
        }
    }
    ending = 1;
    pthread_join(other, 0);
    puts("done");
    fflush(stdout);
    return 42;
}
