// Queued signals that wait, blocked: two for the process, one for its only thread. Told to, it has another thread take what is the
// process's, three by then, in the order in which they were sent.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "told.h"

static int values[4];

static int take(int signal) {
    sigset_t set;
    siginfo_t info;
    struct timespec now = {0, 0};
    sigemptyset(&set);
    sigaddset(&set, signal);
    return sigtimedwait(&set, &info, &now) == signal ? info.si_value.sival_int : -1;
}

static void *other(void *unused) {
    for (int i = 0; i < 3; i++) values[i] = take(SIGRTMIN + 1);
    values[3] = take(SIGRTMIN + 2);
    return unused;
}

int main(void) {
    sigset_t set;
    pthread_t thread;
    siginfo_t info = {0};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    wait_to_be_told();
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    sigaddset(&set, SIGRTMIN + 2);
    sigprocmask(SIG_BLOCK, &set, NULL);
    for (int value = 41; value < 43; value++) sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = value});
    info.si_code = SI_QUEUE;
    info.si_pid = getpid();
    info.si_value.sival_int = 7;
    syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), SIGRTMIN + 2, &info);
    puts("waits");
    fflush(stdout);
    while (!is_told()) usleep(1000);
    pthread_create(&thread, NULL, other, NULL);
    pthread_join(thread, NULL);
    printf("%d %d %d %d, %d\n", values[0], values[1], values[2], values[3], take(SIGRTMIN + 2));
    return 0;
}
