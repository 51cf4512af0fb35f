// Threads that are in malloc all the time, while others send children to nodes, which use libc there.
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/bproc.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUNDS 15
#define CHECK(what) \
    do { \
        if (!(what)) { \
            printf("line %d: %s, errno %d (%s)\n", __LINE__, #what, errno, bproc_strerror(errno)); \
            fflush(stdout); \
            _exit(1); \
        } \
    } while (0)

static pthread_mutex_t guarded = PTHREAD_MUTEX_INITIALIZER;
static volatile int over, in_child;

static void prepare(void) {
    pthread_mutex_lock(&guarded);
}

static void parent(void) {
    pthread_mutex_unlock(&guarded);
}

static void child(void) {
    in_child = getpid();
    pthread_mutex_unlock(&guarded);
}

static void *busy(void *nothing) {
    while (!over) {
        void *memory[64];
        for (int i = 0; i < 64; i++) memory[i] = malloc(100 * (i + 1));
        for (int i = 0; i < 64; i++) free(memory[i]);
        CHECK(pthread_mutex_lock(&guarded) == 0 && pthread_mutex_unlock(&guarded) == 0);
    }
    return nothing;
}

// One for each node.
static void *forker(void *node) {
    int there = *(int *)node;
    for (int round = 0; round < ROUNDS; round++) {
        int pid = bproc_rfork(there), status = -1;
        CHECK(pid >= 0);
        if (pid == 0) {
            alarm(30);
            CHECK(bproc_currnode() == there && in_child == getpid());
            CHECK(pthread_mutex_trylock(&guarded) == 0);
            for (int size = 1; size < 1000000; size *= 2) free(malloc(size));
            FILE *file = fopen("/dev/null", "w");
            CHECK(file && fprintf(file, "%d", round) > 0 && fclose(file) == 0);
            // exit takes more of libc's locks.
            exit(round + 1);
        }
        CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == round + 1);
    }
    return NULL;
}

int main(void) {
    int nodes[2] = {0, 1};
    pthread_t threads[4];
    alarm(120);
    CHECK(pthread_atfork(prepare, parent, child) == 0);
    for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, busy, NULL) == 0);
    for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[2 + i], NULL, forker, &nodes[i]) == 0);
    for (int i = 2; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    over = 1;
    for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    puts("done");
    return 0;
}
