// Writes 0, 1, 2, .. into a file, a line each, opened anew each time: whoever writes a number twice runs twice. The
// threads beside it count too. SIGTERM ends it with 33, and with 34 if a thread stood still.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static volatile sig_atomic_t over;
static volatile unsigned long counts[64];

static void on_term(int sig) {
    (void)sig;
    over = 1;
}

static void *count(void *arg) {
    volatile unsigned long *mine = arg;
    for (;;) {
        ++*mine;
        usleep(1000);
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    int threads = atoi(argv[2]) - 1;
    signal(SIGTERM, on_term);
    for (int i = 0; i < threads && i < 64; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, count, (void *)&counts[i])) return 3;
    }
    for (unsigned long n = 0; !over; n++) {
        char line[32];
        int length = snprintf(line, sizeof line, "%lu\n", n), fd = open(argv[1], O_WRONLY | O_APPEND | O_CREAT, 0644);
        if (fd < 0 || write(fd, line, length) != length || close(fd)) return 4;
        usleep(2000);
    }
    unsigned long before[64];
    for (int i = 0; i < threads; i++) before[i] = counts[i];
    usleep(300000);
    for (int i = 0; i < threads; i++)
        if (counts[i] == before[i]) return 34;
    return 33;
}
