// A group that is signalled as a whole.
//
// `bomb`: chains of processes that fork all the time and end, fork and exec, fork and wait. Says "under way", and nobody of it ends but
// by a signal, or after two minutes. PACE_US: how long one lives.
// `count`: counts SIGRTMIN, says so at SIGRTMIN + 1, and ends.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static time_t until;

static int goes_on(void) {
    const char *pace = getenv("PACE_US");
    usleep(pace ? atoi(pace) : 50000);
    return time(0) < until;
}

static void bomb(char kind) {
    signal(SIGCHLD, SIG_IGN);
    while (goes_on()) {
        pid_t child = fork();
        if (child < 0) continue;
        if (kind == 'h') {
            if (child) _exit(0);
        } else if (kind == 'x') {
            char end[24], what[2] = {kind, 0};
            if (child) _exit(0);
            snprintf(end, sizeof end, "%ld", (long)until);
            execl("/proc/self/exe", "groups", "bomb", end, what, (char *)0);
            _exit(1);
        } else {
            if (child) {
                while (waitpid(child, 0, 0) < 0 && errno == EINTR) {}
                continue;
            }
            if (!fork()) goes_on();
            _exit(0);
        }
    }
    _exit(0);
}

static void count(void) {
    sigset_t both;
    sigemptyset(&both), sigaddset(&both, SIGRTMIN), sigaddset(&both, SIGRTMIN + 1);
    sigprocmask(SIG_BLOCK, &both, 0);
    printf("under way\n"), fflush(stdout);
    int got = 0, signal;
    while ((signal = sigwaitinfo(&both, 0)) != SIGRTMIN + 1) got += signal == SIGRTMIN;
    printf("got %d\n", got);
    exit(0);
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "count")) count();
    until = argc > 3 ? atol(argv[2]) : time(0) + 120;
    if (argc > 3) bomb(argv[3][0]);
    const char *kinds = "hxw";
    for (const char *kind = kinds; *kind; kind++) {
        if (!fork()) bomb(*kind);
    }
    printf("under way\n"), fflush(stdout);
    while (time(0) < until) pause();
    return 0;
}
