// Takes the values 0, 1, 2, .. that come with SIGRTMIN, and says where one is missing or before its time. -1 is the last: says
// "took COUNT" and ends. With an argument it rests that many microseconds after each, so that some wait.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
    useconds_t rest = argc > 1 ? (useconds_t)atoi(argv[1]) : 0;
    sigset_t queued;
    sigemptyset(&queued), sigaddset(&queued, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &queued, 0);
    printf("under way\n"), fflush(stdout);
    siginfo_t info;
    for (int next = 0;; next++) {
        while (sigwaitinfo(&queued, &info) != SIGRTMIN) {}
        int value = info.si_value.sival_int;
        if (value == -1) {
            printf("took %d\n", next);
            return 0;
        }
        if (value != next) {
            printf("%d came instead of %d\n", value, next);
            return 1;
        }
        if (rest) usleep(rest);
    }
}
