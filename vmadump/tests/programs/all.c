// Uses what a process can have at once and checks it all the time: heap, stack, vector and x87 registers, alternate
// stack, queued signals with values, blocked and pending signals, both kinds of timers, the clock in a tight loop.
// NO_POSIX_TIMERS leaves one kind of timers out; with UNTIL_TOLD the rounds end after SIGTERM.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#ifdef UNTIL_TOLD
#define ROUNDS 1000000000
#define TELL 16
#else
#define TELL 1
#endif
#ifndef ROUNDS
#define ROUNDS 14
#endif
static char alt[65536];
static volatile int queued, on_alt, alarms, ticks, values, told;

static void fail(const char *what) {
    printf("fail %s errno %d\n", what, errno);
    fflush(stdout);
    _exit(1);
}

static void on_queue(int sig, siginfo_t *info, void *context) {
    char here;
    (void)sig, (void)context;
    queued++;
    if (&here >= alt && &here < alt + sizeof alt) on_alt++;
    values += info->si_value.sival_int;
    if (info->si_code != SI_QUEUE) _exit(2);
}

static void on_term(int sig) { (void)sig; told = 1; }
static void on_alarm(int sig) { (void)sig; alarms++; }
static void on_tick(int sig, siginfo_t *info, void *c) { (void)sig, (void)c; ticks += info->si_value.sival_int; }

static unsigned sum(const unsigned char *p, size_t n) {
    unsigned s = 7;
    while (n--) s = s * 31 + *p++;
    return s;
}

__attribute__((noinline)) static int vectors(uint64_t seed, int turns) {
#ifdef __AVX__
    typedef double v4 __attribute__((vector_size(32)));
    v4 a = {1, 2, 3, 4}, b = {seed, seed + 1, seed + 2, seed + 3}, c = {0, 0, 0, 0};
    for (int i = 0; i < turns; i++) {
        c += a * 2 + b;
        __asm__ volatile("" : "+x"(a), "+x"(b), "+x"(c));
    }
    return c[0] == turns * (2.0 + seed) && c[3] == turns * (8.0 + seed + 3);
#else
    (void)seed, (void)turns;
    return 1;
#endif
}

__attribute__((noinline)) static int extended(int turns) {
    long double x = 1.0L, y = 0;
    for (int i = 0; i < turns; i++) {
        y += x / 3;
        __asm__ volatile("" : "+t"(x));
    }
    return y > turns / 3.0L - 0.001L && y < turns / 3.0L + 0.001L;
}

int main(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    pid_t self = getpid();
    unsigned char *heap = malloc(3 << 20), stack[20000];
    for (int i = 0; i < 3 << 20; i++) heap[i] = i * 13 + i / 255;
    for (int i = 0; i < 20000; i++) stack[i] = i * 5;
    unsigned heap_sum = sum(heap, 3 << 20), stack_sum = sum(stack, sizeof stack);
    char *locked = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    strcpy(locked, "secret");
    mprotect(locked, 4096, PROT_NONE);
    char *shared = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    strcpy(shared, "common");
    stack_t st = {.ss_sp = alt, .ss_size = sizeof alt};
    if (sigaltstack(&st, 0)) fail("sigaltstack");
    struct sigaction sa = {.sa_sigaction = on_queue, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaction(SIGUSR1, &sa, 0);
    sa.sa_flags = SA_SIGINFO | SA_RESTART, sa.sa_sigaction = on_tick;
    sigaction(SIGRTMIN + 3, &sa, 0);
    struct sigaction plain = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &plain, 0);
    signal(SIGHUP, SIG_IGN);
    signal(SIGTERM, on_term);
    sigset_t block;
    sigemptyset(&block);
    sigaddset(&block, SIGUSR2);
    sigaddset(&block, SIGRTMIN + 5);
    sigaddset(&block, SIGCONT);
    sigprocmask(SIG_BLOCK, &block, 0);
    sigqueue(self, SIGUSR2, (union sigval){.sival_int = 4711});
    for (int i = 0; i < 3; i++) sigqueue(self, SIGRTMIN + 5, (union sigval){.sival_int = 100 + i});
    struct itimerval it = {{0, 3000}, {0, 3000}};
    setitimer(ITIMER_REAL, &it, 0);
#ifndef NO_POSIX_TIMERS
    timer_t skipped, timer;
    struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3, .sigev_value.sival_int = 1};
    timer_create(CLOCK_MONOTONIC, &ev, &skipped);
    timer_create(CLOCK_MONOTONIC, &ev, &timer);
    timer_delete(skipped);
    struct itimerspec its = {{0, 4000000}, {0, 4000000}};
    timer_settime(timer, 0, &its, 0);
#endif

    struct timespec then, now;
    clock_gettime(CLOCK_MONOTONIC, &then);
    int sent = 0, sum_sent = 0;
    for (int round = 0; told == 0 && round < ROUNDS; round++) {
        int alarms_before = alarms, ticks_before = ticks;
        if (round % TELL == 0) {
            printf("round %d\n", round);
            fflush(stdout);
        }
#ifdef NO_POSIX_TIMERS
        ticks += 2;
#endif
        // Until the timers have gone off and some work is done.
        for (int turn = 0; turn < 20 || alarms - alarms_before < 3 || ticks - ticks_before < 2; turn++) {
            if (!vectors(turn, 3000)) fail("vectors");
            if (!extended(2000)) fail("x87");
            for (int i = 0; i < 500; i++) {
                clock_gettime(CLOCK_MONOTONIC, &now);
                if (now.tv_sec < then.tv_sec || (now.tv_sec == then.tv_sec && now.tv_nsec < then.tv_nsec)) fail("clock");
                then = now;
            }
            if (turn % 8 == 0) {
                sent++, sum_sent += turn;
                sigqueue(self, SIGUSR1, (union sigval){.sival_int = turn});
            }
            if (turn > 200000) fail("timers stand still");
        }
        if (queued != sent || on_alt != sent || values != sum_sent) fail("queued signals");
        if (sum(heap, 3 << 20) != heap_sum) fail("heap");
        if (sum(stack, sizeof stack) != stack_sum) fail("stack");
        if (getpid() != self) fail("pid");
        heap[round % 700 * 4096]++;
        heap_sum = sum(heap, 3 << 20);
        if (strcmp(shared, "common")) fail("shared memory");
    }
    mprotect(locked, 4096, PROT_READ);
    if (strcmp(locked, "secret")) fail("unreadable memory");
    if (signal(SIGHUP, SIG_DFL) != SIG_IGN) fail("ignored signal");
    siginfo_t info;
    struct timespec none = {0, 0};
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, SIGUSR2);
    if (sigtimedwait(&one, &info, &none) != SIGUSR2 || info.si_value.sival_int != 4711) fail("pending signal");
    sigemptyset(&one);
    sigaddset(&one, SIGRTMIN + 5);
    for (int i = 0; i < 3; i++)
        if (sigtimedwait(&one, &info, &none) != SIGRTMIN + 5 || info.si_value.sival_int != 100 + i) fail("queue");
    void *more = malloc(10 << 20);
    memset(more, 1, 10 << 20);
    free(more);
    puts("done");
    return 42;
}
