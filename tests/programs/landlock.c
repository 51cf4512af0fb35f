// Under Landlock. `landlock KIND DIR run PROGRAM ARG..` executes a program so. `landlock KIND DIR inside NODE` goes to NODE (-1: stays),
// puts itself under Landlock and says what comes of each call that would take it elsewhere. `landlock KIND DIR outside HOW` waits for
// signals: at SIGUSR1 it puts itself under Landlock (HOW is `thread`: another thread of it), at SIGUSR2 it says whether it is.
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/bproc.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *kind, *dir;

static void say(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    if (fflush(stdout)) _exit(99);
}

static void tell(const char *call, int result) {
    say("%s %d: %d", call, result, result == -1 ? errno : 0);
}

// Says so where the kernel does not know this kind.
static void restrict_self(void) {
    // Files: no new directories. The network: no bind. Scopes: no signals out.
    unsigned long long handled[3] = {!strcmp(kind, "files") << 7, !strcmp(kind, "network"), !strcmp(kind, "signals") << 1};
    int rules = syscall(SYS_landlock_create_ruleset, handled, handled[1] || handled[2] ? sizeof handled : 8, 0);
    if (rules < 0) say("skipped: Landlock of %s: %s", kind, strerror(errno)), _exit(0);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_landlock_restrict_self, rules, 0)) _exit(98);
    close(rules);
}

static int is_held(void) {
    return mkdir(dir, 0700) ? errno == EACCES : rmdir(dir);
}

static void *thread(void *unused) {
    restrict_self();
    say("restricted");
    for (;;) pause();
    return unused;
}

static int outside(int by_thread) {
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGUSR1), sigaddset(&set, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, 0);
    say("ready");
    for (int sig; !sigwait(&set, &sig);) {
        pthread_t other;
        if (sig == SIGUSR2) say(is_held() ? "held" : "free");
        else if (by_thread) pthread_create(&other, 0, thread, 0);
        else restrict_self(), say("restricted");
    }
    return 1;
}

static int inside(int node) {
    char *args[] = {"echo", "it is out", 0}, *env[] = {0};
    int nodes[] = {!node, 2}, pids[2] = {0, 0}, me = getpid();
    if (node >= 0 && bproc_move(node)) return 97;
    restrict_self();
    say("restricted");
    for (int to = -1; to < 2; to++)
        if (to != node) tell("move", bproc_move(to));
    tell("rexec", bproc_rexec(!node, "/bin/echo", args, env));
    tell("execmove", bproc_execmove(!node, "/bin/echo", args, env));
    int child = bproc_rfork(!node);
    if (getpid() != me) say("it is out"), _exit(0);
    tell("rfork", child);
    int rank = bproc_vrfork(2, nodes, pids);
    if (getpid() != me) say("it is out"), _exit(0);
    say("vrfork %d %d %d", rank, pids[0], pids[1]);
    while (wait(0) > 0) {}
    say(is_held() ? "held" : "free");
    return 5;
}

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    kind = argv[1], dir = argv[2];
    if (!strcmp(argv[3], "outside")) return outside(!strcmp(argv[4], "thread"));
    if (!strcmp(argv[3], "inside")) return inside(atoi(argv[4]));
    restrict_self();
    execvp(argv[4], argv + 4);
    return 96;
}
