// Threads that hand work around under mutexes and condition variables, each with its own thread-local state, a
// robust mutex that a dying thread leaves behind, and a join at the end. With UNTIL_TOLD the rounds end after SIGTERM.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#ifdef UNTIL_TOLD
#define ROUNDS 1000000000
#endif
#ifndef ROUNDS
#define ROUNDS 14
#endif
// Microseconds of rest in each round.
#ifndef PAUSE
#define PAUSE 0
#endif

static int count = 8;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER, recursive, robust;
static pthread_cond_t turn = PTHREAD_COND_INITIALIZER;
static int whose, total;
static volatile int rounds = ROUNDS, told;
static __thread int mine;
static __thread char name[16];

static void fail(const char *what) {
    printf("fail %s\n", what);
    fflush(stdout);
    _exit(1);
}

static void on_term(int sig) { (void)sig; told = 1; }

static void *work(void *arg) {
    int me = (int)(long)arg;
    sprintf(name, "worker-%d", me);
    pthread_setname_np(pthread_self(), name);
    for (int i = 0; i < rounds; i++) {
        pthread_mutex_lock(&lock);
        while (whose != me) pthread_cond_wait(&turn, &lock);
        pthread_mutex_lock(&recursive);
        pthread_mutex_lock(&recursive);
        mine++, total++;
        if (mine != i + 1) fail("thread local");
        if (me == 0) {
            printf("round %d\n", i);
            fflush(stdout);
            if (PAUSE) usleep(PAUSE);
            // The others are behind by less than a round.
            if (told) rounds = i + 1;
        }
        usleep(300);
        pthread_mutex_unlock(&recursive);
        pthread_mutex_unlock(&recursive);
        whose = (me + 1) % count;
        pthread_cond_broadcast(&turn);
        pthread_mutex_unlock(&lock);
    }
    char now[16];
    pthread_getname_np(pthread_self(), now, sizeof now);
    if (strcmp(now, name)) fail("name");
    if (me == 1) pthread_mutex_lock(&robust);
    return (void *)(long)(me * 3);
}

int main(int argc, char **argv) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGTERM, on_term);
    if (argc > 1) count = atoi(argv[1]);
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&recursive, &attr);
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&robust, &attr);
    pthread_t threads[count];
    for (long i = 0; i < count; i++) pthread_create(&threads[i], 0, work, (void *)i);
    for (long i = 0; i < count; i++) {
        void *got;
        pthread_join(threads[i], &got);
        if ((long)got != i * 3) fail("join");
    }
    if (total != rounds * count) fail("total");
    if (pthread_mutex_lock(&robust) != EOWNERDEAD) fail("robust mutex");
    puts("done");
    return 42;
}
