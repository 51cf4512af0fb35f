// Moves itself and its children by the library, and checks what it sees.
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/bproc.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what) \
    do { \
        if (!(what)) { \
            printf("line %d: %s, errno %d (%s)\n", __LINE__, #what, errno, bproc_strerror(errno)); \
            fflush(stdout); \
            exit(1); \
        } \
    } while (0)

static volatile int children;

static void on_child(int sig) {
    (void)sig;
    children++;
}

static int ended_at(int line, int pid) {
    int status = -1, got = waitpid(pid, &status, 0);
    if (got != pid) printf("line %d: waits for %d\n", line, pid);
    CHECK(got == pid);
    return status;
}
#define ended(pid) ended_at(__LINE__, pid)

// The master's address is told here, in both ways.
static void master_has_an_address(void) {
    struct sockaddr_in one, other;
    struct bproc_node_info_t info;
    int size = sizeof one, none = 4;
    CHECK(bproc_masteraddr((struct sockaddr *)&one, &size) == 0 && size == sizeof one);
    CHECK(one.sin_family == AF_INET && one.sin_addr.s_addr == htonl(INADDR_LOOPBACK));
    CHECK(bproc_nodeaddr(BPROC_NODE_MASTER, (struct sockaddr *)&other, &size) == 0);
    CHECK(memcmp(&one, &other, sizeof one) == 0);
    CHECK(bproc_nodeinfo(BPROC_NODE_MASTER, &info) == 0 && memcmp(&info.addr, &one, sizeof one) == 0);
    CHECK(bproc_masteraddr((struct sockaddr *)&one, &none) == -1 && errno == EINVAL);
}

int main(void) {
    int me = getpid(), parent = getppid(), status, pid, pids[3], nodes[3] = {0, 1, 7};
    signal(SIGCHLD, on_child);
    alarm(60);
    CHECK(bproc_currnode() == BPROC_NODE_MASTER);
    master_has_an_address();

    // Failures leave everything as it is.
    int fd = open("/etc/passwd", O_RDONLY);
    CHECK(bproc_move(7) == -1 && errno == BE_INVALIDNODE);
    CHECK(_bproc_move(0, 64) == -1 && errno == EINVAL);
    CHECK(bproc_rfork(7) == -1 && errno == BE_INVALIDNODE);
    CHECK(waitpid(-1, &status, WNOHANG) == -1 && errno == ECHILD && children == 0);
    CHECK(fcntl(fd, F_GETFD) >= 0);

    // A child that stays behind.
    CHECK((pid = fork()) >= 0);
    if (pid == 0) {
        usleep(300000);
        _exit(17);
    }

    CHECK(bproc_move(0) == 0);
    CHECK(bproc_currnode() == 0 && getpid() == me && getppid() == parent);
    CHECK(fcntl(fd, F_GETFD) == -1 && errno == EBADF);
    CHECK(bproc_move(0) == 0);
    master_has_an_address();
    CHECK(bproc_move(1, BPROC_DUMP_ALL) == 0);
    CHECK(bproc_currnode() == 1);
    // One that ends while its parent is on its way may be told at both ends.
    CHECK(ended(pid) == 17 << 8 && children >= 1);

    // Children of a process on a node: here, and elsewhere.
    CHECK((pid = fork()) >= 0);
    if (pid == 0) _exit(getppid() == me ? 18 : 1);
    CHECK(ended(pid) == 18 << 8);
    CHECK((pid = bproc_rfork(2)) >= 0);
    if (pid == 0) {
        CHECK(bproc_currnode() == 2 && getppid() == me);
        _exit(19);
    }
    CHECK(ended(pid) == 19 << 8);
    CHECK(bproc_rfork(9) == -1 && errno == BE_INVALIDNODE);

    CHECK(bproc_move(BPROC_NODE_MASTER) == 0);
    CHECK(bproc_currnode() == BPROC_NODE_MASTER && getpid() == me && getppid() == parent);

    // A child elsewhere, that is stopped, continued and killed.
    CHECK((pid = bproc_rfork(0)) >= 0);
    if (pid == 0) {
        for (;;) pause();
    }
    CHECK(bproc_pidnode(pid) == 0);
    CHECK(kill(pid, SIGSTOP) == 0);
    CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
    CHECK(kill(pid, SIGCONT) == 0);
    CHECK(waitpid(pid, &status, WCONTINUED) == pid && WIFCONTINUED(status));
    CHECK(kill(pid, SIGKILL) == 0);
    CHECK(ended(pid) == SIGKILL);

    // Several at once; one of them nowhere.
    int rank = bproc_vrfork(3, nodes, pids);
    if (rank < 3) {
        CHECK(rank >= 0 && bproc_currnode() == nodes[rank]);
        _exit(30 + rank);
    }
    CHECK(rank == 3 && pids[0] > 0 && pids[1] > 0 && pids[2] == -BE_INVALIDNODE);
    CHECK(ended(pids[0]) == 30 << 8 && ended(pids[1]) == 31 << 8);
    pid = waitpid(-1, &status, WNOHANG);
    if (pid != -1) printf("child %d is left, status %#x\n", pid, status);
    CHECK(pid == -1 && errno == ECHILD);
    puts("done");
    return 0;
}
