// Threads that are in calls of the library all the time, while two others take the process from node to node, at once.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/bproc.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUNDS 8
#define CHECK(what) \
    do { \
        if (!(what)) { \
            printf("line %d: %s, errno %d (%s)\n", __LINE__, #what, errno, bproc_strerror(errno)); \
            fflush(stdout); \
            _exit(1); \
        } \
    } while (0)

static int over, moving, moves;

static int get(int *number) {
    return __atomic_load_n(number, __ATOMIC_SEQ_CST);
}

static void add(int *number, int what) {
    __atomic_add_fetch(number, what, __ATOMIC_SEQ_CST);
}

// None of them fails because the process is on its way.
static void *asking(void *nothing) {
    while (!get(&over)) {
        struct bproc_node_set_t set = BPROC_EMPTY_NODESET;
        struct bproc_node_info_t info;
        int here = bproc_currnode();
        CHECK(here == -1 || here == 0 || here == 1);
        CHECK(bproc_nodelist(&set) == 3 && set.size == 3);
        bproc_nodeset_free(&set);
        CHECK(bproc_nodeinfo(BPROC_NODE_MASTER, &info) == 0 && bproc_pidnode(getpid()) != BPROC_NODE_NONE);
    }
    return nothing;
}

// Nor a child that is sent away meanwhile.
static void *forking(void *nothing) {
    while (!get(&over)) {
        int status = -1, pid = bproc_rfork(2);
        CHECK(pid >= 0);
        if (pid == 0) _exit(bproc_currnode() == 2 ? 5 : 6);
        CHECK(waitpid(pid, &status, 0) == pid && status == 5 << 8);
    }
    return nothing;
}

// Its descriptors go only when the process does. It closes none: after a move the number may be another's.
static void *holding(void *nothing) {
    int open_since = -1, open_now = 0;
    while (!get(&over)) {
        int before = get(&moves), fd;
        if (before != open_since) open_since = before, open_now = 0;
        if (get(&moving) || ++open_now > 200) continue;
        CHECK((fd = open("/dev/null", O_RDONLY)) > 2);
        for (int i = 0; i < 1000; i++) {
            int there = fcntl(fd, F_GETFD) >= 0;
            if (get(&moving) || get(&moves) != before) break;
            CHECK(there);
        }
    }
    return nothing;
}

static void *going(void *first) {
    for (int round = 0; round < ROUNDS; round++) {
        add(&moving, 1);
        CHECK(bproc_move((*(int *)first + round) % 3 - 1) == 0);
        add(&moves, 1);
        add(&moving, -1);
    }
    return NULL;
}

int main(void) {
    int first[2] = {1, 2};
    pthread_t callers[4], movers[2];
    void *(*calls[4])(void *) = {asking, asking, forking, holding};
    alarm(120);
    for (int i = 0; i < 4; i++) CHECK(pthread_create(&callers[i], NULL, calls[i], NULL) == 0);
    for (int i = 0; i < 2; i++) CHECK(pthread_create(&movers[i], NULL, going, &first[i]) == 0);
    for (int i = 0; i < 2; i++) CHECK(pthread_join(movers[i], NULL) == 0);
    add(&over, 1);
    for (int i = 0; i < 4; i++) CHECK(pthread_join(callers[i], NULL) == 0);
    CHECK(bproc_move(-1) == 0);
    puts("done");
    return 0;
}
