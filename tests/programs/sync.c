// Sixty-four threads with what threads share: mutexes of every kind (robust ones whose owners die), condition variables,
// barriers, read-write locks, semaphores, thread-local memory, names, masks and signals of their own.
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../../vmadump/tests/programs/told.h"

#define THREADS 64

static pthread_mutex_t plain = PTHREAD_MUTEX_INITIALIZER, robust, recursive, inherits;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER, all_in = PTHREAD_COND_INITIALIZER;
static pthread_rwlock_t readers = PTHREAD_RWLOCK_INITIALIZER;
static pthread_barrier_t barrier;
static sem_t tokens;
static int wanted, in, turns[THREADS], guarded, pairs[2];
static __thread int own;
static __thread volatile int heard;
static __thread char name[16];

static void fail(const char *what) {
    printf("fail %s errno %d\n", what, errno);
    fflush(stdout);
    _exit(1);
}

static void on_signal(int sig) { (void)sig; heard++; }

static void *dies_with_it(void *arg) {
    (void)arg;
    pthread_mutex_lock(&robust);
    return NULL;
}

static void take_robust(void) {
    int got = pthread_mutex_lock(&robust);
    if (got == EOWNERDEAD) got = pthread_mutex_consistent(&robust);
    if (got) fail("robust mutex");
}

static void *work(void *arg) {
    int me = (int)(long)arg, round = 0, tid = syscall(SYS_gettid);
    own = me, heard = 0;
    snprintf(name, sizeof name, "worker %d", me);
    pthread_setname_np(pthread_self(), name);
    for (;;) {
        pthread_mutex_lock(&plain);
        while (wanted == round) pthread_cond_wait(&more, &plain);
        round = wanted;
        pthread_mutex_unlock(&plain);
        if (sem_wait(&tokens)) fail("semaphore");
        take_robust();
        guarded++;
        pthread_mutex_unlock(&robust);
        sem_post(&tokens);
        pthread_mutex_lock(&recursive), pthread_mutex_lock(&recursive);
        guarded += 0;
        pthread_mutex_unlock(&recursive), pthread_mutex_unlock(&recursive);
        if (pthread_mutex_lock(&inherits) || pthread_mutex_unlock(&inherits)) fail("mutex with priority inheritance");
        if (me % 8 == 0) {
            pthread_rwlock_wrlock(&readers);
            pairs[0]++, usleep(10), pairs[1]++;
        } else {
            pthread_rwlock_rdlock(&readers);
            if (pairs[0] != pairs[1]) fail("read-write lock");
        }
        pthread_rwlock_unlock(&readers);
        int before = heard;
        pthread_kill(pthread_self(), SIGUSR1);
        if (heard != before + 1) fail("a signal to one thread");
        char now[16];
        prctl(PR_GET_NAME, now);
        if (own != me || strcmp(now, name) || syscall(SYS_gettid) != tid) fail("what is a thread's own");
        turns[me]++;
        pthread_barrier_wait(&barrier);
        pthread_mutex_lock(&plain);
        if (++in == THREADS) pthread_cond_signal(&all_in);
        pthread_mutex_unlock(&plain);
    }
    return NULL;
}

int main(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    wait_to_be_told();
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&recursive, &attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_NORMAL);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&robust, &attr);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_STALLED);
    pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT);
    pthread_mutex_init(&inherits, &attr);
    pthread_barrier_init(&barrier, NULL, THREADS);
    sem_init(&tokens, 0, 3);
    signal(SIGUSR1, on_signal);
    pthread_t threads[THREADS];
    for (long i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, work, (void *)i)) fail("thread");
    for (int round = 1; !is_told(); round++) {
        printf("round %d\n", round);
        fflush(stdout);
        usleep(15000);
        // An owner that dies, before or after a move.
        pthread_t dies;
        if (round % 3 == 0) {
            pthread_create(&dies, NULL, dies_with_it, NULL);
            pthread_join(dies, NULL);
        }
        pthread_mutex_lock(&plain);
        in = 0, wanted = round;
        pthread_cond_broadcast(&more);
        while (in < THREADS) pthread_cond_wait(&all_in, &plain);
        pthread_mutex_unlock(&plain);
        take_robust();
        if (guarded != round * THREADS) fail("what the robust mutex guards");
        pthread_mutex_unlock(&robust);
        for (int i = 0; i < THREADS; i++)
            if (turns[i] != round) fail("a thread's turns");
    }
    puts("done");
    fflush(stdout);
    _exit(42);
}
