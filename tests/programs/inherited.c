// What a program takes over of whoever started it. `inherited set WORD.. -- COMMAND..` sets what the words name and becomes the
// command, or a child of it does (`fork`); `inherited` alone tells what it has, in one line.
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <linux/securebits.h>
#include <unistd.h>

#define RESET_ON_FORK 0x40000000

static void need(const char *what, long result) {
    if (result >= 0) return;
    fprintf(stderr, "cannot set %s: %s\n", what, strerror(errno));
    // As the caller's skips know it.
    exit(errno == EPERM || errno == EACCES ? 77 : 1);
}

static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    need(path, fd < 0 ? -1 : write(fd, text, strlen(text)));
    close(fd);
}

static const char *get(const char *path) {
    static char text[128];
    int fd = open(path, O_RDONLY);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    text[n < 0 ? 0 : n] = 0;
    text[strcspn(text, "\n")] = 0;
    return text;
}

static void scheduling(const char *name, int policy, int priority) {
    struct sched_param param = {.sched_priority = priority};
    need(name, sched_setscheduler(0, policy, &param));
}

static void set(const char *word) {
    if (!strcmp(word, "processor")) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(0, &one);
        need(word, sched_setaffinity(0, sizeof one, &one));
    }
    if (!strcmp(word, "batch")) scheduling(word, SCHED_BATCH, 0);
    if (!strcmp(word, "idle")) scheduling(word, SCHED_IDLE, 0);
    if (!strcmp(word, "fifo")) scheduling(word, SCHED_FIFO, 7);
    if (!strcmp(word, "rr")) scheduling(word, SCHED_RR, 9);
    if (!strcmp(word, "reset")) scheduling(word, SCHED_FIFO | RESET_ON_FORK, 7);
    if (!strcmp(word, "nice")) need(word, setpriority(PRIO_PROCESS, 0, 5));
    if (!strcmp(word, "io")) need(word, syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6));
    if (!strcmp(word, "io-idle")) need(word, syscall(SYS_ioprio_set, 1, 0, 3 << 13));
    if (!strcmp(word, "personality")) need(word, personality(ADDR_NO_RANDOMIZE | UNAME26));
    if (!strcmp(word, "oom")) put("/proc/self/oom_score_adj", "321");
    if (!strcmp(word, "spared")) put("/proc/self/oom_score_adj", "-123");
    if (!strcmp(word, "slack")) need(word, prctl(PR_SET_TIMERSLACK, 77777));
    if (!strcmp(word, "core")) put("/proc/self/coredump_filter", "0x11");
    if (!strcmp(word, "bits")) need(word, prctl(PR_SET_SECUREBITS, SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED));
    if (!strcmp(word, "no-root")) need(word, prctl(PR_SET_SECUREBITS, SECBIT_NOROOT));
    if (!strcmp(word, "privileges")) need(word, prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    if (!strcmp(word, "umask")) umask(027);
    if (!strcmp(word, "limits")) {
        struct rlimit files = {50, 60}, core = {1000, 2000};
        need(word, setrlimit(RLIMIT_NOFILE, &files));
        need(word, setrlimit(RLIMIT_CORE, &core));
    }
    if (!strcmp(word, "signals")) {
        sigset_t blocked;
        sigemptyset(&blocked), sigaddset(&blocked, SIGUSR1), sigaddset(&blocked, SIGRTMIN + 3);
        sigprocmask(SIG_BLOCK, &blocked, 0);
        signal(SIGUSR2, SIG_IGN), signal(SIGQUIT, SIG_IGN);
    }
    if (!strcmp(word, "fork")) {
        int status;
        pid_t child = fork();
        need(word, child);
        if (child > 0) exit(wait(&status) == child && WIFEXITED(status) ? WEXITSTATUS(status) : 1);
    }
    if (!strcmp(word, "user")) {
        need(word, setresgid(65534, 65534, 65534));
        need(word, setresuid(65534, 65534, 65534));
    }
}

static void tell(void) {
    struct sched_param param;
    struct rlimit files, core;
    cpu_set_t processors;
    sched_getparam(0, &param);
    sched_getaffinity(0, sizeof processors, &processors);
    getrlimit(RLIMIT_NOFILE, &files), getrlimit(RLIMIT_CORE, &core);
    printf("processors %d/%d", CPU_COUNT(&processors), CPU_ISSET(0, &processors));
    printf(" policy %x priority %d nice %d", sched_getscheduler(0), param.sched_priority, getpriority(PRIO_PROCESS, 0));
    printf(" io %lx personality %x", syscall(SYS_ioprio_get, 1, 0), personality(0xffffffff));
    printf(" oom %s", get("/proc/self/oom_score_adj"));
    // What a real-time policy leaves to a child that is reset is 0, which nobody can set.
    int slack = prctl(PR_GET_TIMERSLACK);
    printf(" core %s slack %d", get("/proc/self/coredump_filter"), slack ? slack : 50000);
    printf(" bits %x", prctl(PR_GET_SECUREBITS));
    printf(" privileges %d", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    mode_t mask = umask(0);
    printf(" umask %o limits %ld %ld %ld %ld ignored", mask, (long)files.rlim_cur, (long)files.rlim_max, (long)core.rlim_cur, (long)core.rlim_max);
    sigset_t blocked;
    sigprocmask(SIG_BLOCK, 0, &blocked);
    for (int number = 1; number <= SIGRTMAX; number++) {
        struct sigaction action;
        if (!sigaction(number, 0, &action) && action.sa_handler == SIG_IGN) printf(" %d", number);
        if (sigismember(&blocked, number) == 1) printf(" b%d", number);
    }
    printf("\n");
}

int main(int argc, char **argv) {
    if (argc == 1) {
        tell();
        return 0;
    }
    int at = 2;
    for (; at < argc && strcmp(argv[at], "--"); at++) set(argv[at]);
    if (at + 1 < argc) execvp(argv[at + 1], argv + at + 1);
    perror("exec");
    return 1;
}
