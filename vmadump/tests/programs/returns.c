// Is interrupted by a signal in the vdso of a kernel that it did not begin on, and stays in the handler until SIGUSR1 or
// SIGTERM, wherever it goes meanwhile; then it returns there. On its stack lies an address that only looks like that.
// It reads the clock all the time, and ends after SIGTERM.
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static volatile int told, left, stayed;
static volatile uintptr_t start, end;

static void say(const char *what) {
    if (write(1, what, strlen(what)) != (ssize_t)strlen(what)) _exit(3);
}

static void look(void) {
    static char maps[65536];
    int fd = open("/proc/self/maps", O_RDONLY);
    ssize_t all = 0, n;
    while ((n = read(fd, maps + all, sizeof maps - 1 - all)) > 0) all += n;
    close(fd);
    maps[all] = 0;
    char *line = strstr(maps, "[vdso]"), *rest;
    if (!line) _exit(4);
    while (line > maps && line[-1] != '\n') line--;
    start = strtoul(line, &rest, 16), end = strtoul(rest + 1, 0, 16);
}

static void on_term(int sig) { (void)sig, told = 1; }
static void on_user(int sig) { (void)sig, left = 1; }

static void on_alarm(int sig, siginfo_t *info, void *context) {
    uintptr_t rip = ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    (void)sig, (void)info;
    look();
    if (!stayed && start != getauxval(AT_SYSINFO_EHDR) && rip >= start && rip < end) {
        for (stayed = 1; !told && !left;) {
            say("round inside\n");
            nanosleep(&(struct timespec){0, 20000000}, 0);
        }
        // No signals any more.
        setitimer(ITIMER_REAL, &(struct itimerval){0}, 0);
        say("round returns\n");
    }
}

int main(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    volatile uintptr_t lies[8] = {0};
    signal(SIGTERM, on_term);
    signal(SIGUSR1, on_user);
    struct sigaction action = {.sa_sigaction = on_alarm, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGALRM, &action, 0);
    struct itimerval every = {{0, 5000}, {0, 5000}};
    setitimer(ITIMER_REAL, &every, 0);
    struct timespec then, now;
    clock_gettime(CLOCK_MONOTONIC, &then);
    for (unsigned turn = 0; !told; turn++) {
        if (turn % 65536 == 0) say("round\n");
        for (int i = 0; i < 8; i++) lies[i] = start + 0xac2;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec < then.tv_sec || (now.tv_sec == then.tv_sec && now.tv_nsec < then.tv_nsec)) _exit(1);
        then = now;
    }
    say("done\n");
    return 42;
}
