// Threads that end as fast as they are made, beside a first one that, most of the time, cannot be stopped for a while.
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "told.h"

static void *ends(void *arg) { return arg; }

static void *makes(void *arg) {
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    for (pthread_t one;;)
        if (pthread_create(&one, &attr, ends, NULL)) usleep(100);
    return arg;
}

int main(void) {
    wait_to_be_told();
    pthread_t makers[4];
    for (int i = 0; i < 4; i++)
        if (pthread_create(&makers[i], NULL, makes, NULL)) return 1;
    puts("round 0");
    fflush(stdout);
    while (!is_told()) {
        pid_t pid = vfork();
        if (pid == 0) {
            usleep(2000);
            _exit(0);
        }
        if (pid < 0 || waitpid(pid, NULL, 0) != pid) return 2;
        usleep(500);
    }
    _exit(42);
}
