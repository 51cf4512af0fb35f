// Goes to many nodes at once, and checks what each of its children sees.
//
//   spread fork MIB NODE... : bproc_vrfork; each child has MIB of memory to check, and a child of its own
//   spread away MIB NODE... : the same from node 0
//   spread exec MIB NODE... : bproc_vexecmove of this program
//
// Prints a line for each: the pid or the negative number; then `waiting`; then rank and status of each that came.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/bproc.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST 64
#define CHECK(what) \
    do { \
        if (!(what)) { \
            dprintf(2, "line %d: %s, errno %d (%s)\n", __LINE__, #what, errno, bproc_strerror(errno)); \
            _exit(1); \
        } \
    } while (0)

static volatile int children;

static void on_child(int sig) {
    (void)sig;
    children++;
}

// A page that is not like any other.
static void fill(unsigned *page, unsigned number) {
    for (unsigned i = 0; i < 1024; i++) page[i] = number * 2654435761u + i * 40503u + 1;
}

static int is_filled(const unsigned *page, unsigned number) {
    for (unsigned i = 0; i < 1024; i++)
        if (page[i] != number * 2654435761u + i * 40503u + 1) return 0;
    return 1;
}

// What a child of rank `rank` does.
static void child(int rank, int node, int parent, unsigned *memory, unsigned pages) {
    int status, pid;
    CHECK(bproc_currnode() == node);
    CHECK(getppid() == parent && getpid() != parent);
    CHECK(kill(parent, 0) == 0);
    for (unsigned i = 0; i < pages; i++) CHECK(is_filled(memory + i * 1024, i));
    // It is its own now.
    for (unsigned i = 0; i < pages; i++) memory[i * 1024] = rank;
    for (unsigned i = 0; i < pages; i++) CHECK(memory[i * 1024] == (unsigned)rank);
    void *fresh = malloc(100000);
    CHECK(fresh && memset(fresh, rank, 100000));
    free(fresh);
    int me = getpid();
    CHECK((pid = fork()) >= 0);
    if (pid == 0) _exit(getppid() == me ? 50 + rank : 1);
    CHECK(waitpid(pid, &status, 0) == pid && status == (50 + rank) << 8);
    _exit(100 + rank);
}

int main(int argc, char **argv) {
    int nodes[MOST], pids[MOST], n = argc - 3, me = getpid(), rank;
    if (argc == 3 && !strcmp(argv[1], "ranked")) {
        // As vexecmove has started it.
        const char *told = getenv("BPROC_RANK");
        CHECK(told && strlen(told) == 7 && getppid() == atoi(argv[2]));
        dprintf(1, "%s on %d\n", told, bproc_currnode());
        return 100 + atoi(told);
    }
    if (n < 1 || n > MOST) return 2;
    unsigned pages = atoi(argv[2]) * 256u;
    unsigned *memory = (unsigned *)malloc(pages * 4096ul + 1);
    for (unsigned i = 0; i < pages; i++) fill(memory + i * 1024, i);
    for (int i = 0; i < n; i++) nodes[i] = atoi(argv[3 + i]), pids[i] = 12345;
    signal(SIGCHLD, on_child);
    if (!strcmp(argv[1], "away")) CHECK(bproc_move(0) == 0);
    if (!strcmp(argv[1], "exec")) {
        char parent[20], rank_entry[] = "BPROC_RANK=XXXXXXX", word[] = "ranked", socket[300];
        snprintf(parent, sizeof parent, "%d", me);
        snprintf(socket, sizeof socket, "BPROC_SOCKET=%s", getenv("BPROC_SOCKET"));
        char *arguments[] = {argv[0], word, parent, NULL}, *environment[] = {rank_entry, socket, NULL};
        rank = bproc_vexecmove(n, nodes, pids, argv[0], arguments, environment);
    } else {
        rank = bproc_vrfork(n, nodes, pids);
        if (rank >= 0 && rank < n) child(rank, nodes[rank], me, memory, pages);
    }
    CHECK(rank == n && getpid() == me);
    for (unsigned i = 0; i < pages; i++) CHECK(is_filled(memory + i * 1024, i));
    for (int i = 0; i < n; i++) printf("%d\n", pids[i]);
    puts("waiting");
    fflush(stdout);
    int came = 0;
    for (int i = 0; i < n; i++) {
        int status = 0;
        if (pids[i] < 0) continue;
        while (waitpid(pids[i], &status, 0) < 0) CHECK(errno == EINTR);
        printf("%d %d\n", i, status);
        came++;
    }
    // None but these are or were its children.
    CHECK(waitpid(-1, NULL, __WALL) == -1 && errno == ECHILD);
    CHECK(children <= came && (came == 0 || children > 0));
    puts("done");
    return 0;
}
