// Writes 0, 1, 2, .. into a file, a line each, opened anew each time: whoever writes a number twice runs twice. The
// threads beside it count too. SIGTERM ends it with 33, with 34 if a thread stood still, and with 35 if it came twice.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static volatile sig_atomic_t terms;
static volatile unsigned long counts[64];

static void on_term(int sig) {
    (void)sig;
    terms++;
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
    for (unsigned long n = 0; !terms; n++) {
        char line[32];
        int length = snprintf(line, sizeof line, "%lu\n", n), fd = open(argv[1], O_WRONLY | O_APPEND | O_CREAT, 0644);
        if (fd < 0 || write(fd, line, length) != length || close(fd)) return 4;
        usleep(2000);
    }
    unsigned long before[64];
    for (int i = 0; i < threads; i++) before[i] = counts[i];
    usleep(300000);
    // A busy machine may take its time.
    for (int i = 0, looks = 0; i < threads; i++)
        while (counts[i] == before[i]) {
            if (looks++ == 100) return 34;
            usleep(100000);
        }
    return terms == 1 ? 33 : 35;
}
