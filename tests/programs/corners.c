// Calls as programs seldom make them. The first argument says which; nodes are 0, 1 and 2.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/bproc.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what) \
    do { \
        if (!(what)) { \
            dprintf(2, "line %d: %s, errno %d (%s)\n", __LINE__, #what, errno, bproc_strerror(errno)); \
            _exit(__LINE__); \
        } \
    } while (0)
// What a child that does this says at its end; below 0: that there is none.
#define CHILD(what) \
    ({ \
        int child_ = fork(); \
        if (child_ == 0) { \
            what; \
            _exit(99); \
        } \
        ended(child_); \
    })

static const char *own;
static char memory[4 << 20];

static int ended(int pid) {
    int status;
    if (pid < 0) return pid;
    CHECK(waitpid(pid, &status, 0) == pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status;
}

// The node that this is on, as a code of its end.
static void tell_node(void) {
    bproc_clear_node_map();
    _exit(bproc_currnode() + 10);
}

// Where each call goes with a map, for a caller on node `at`.
static void map(int at) {
    int of[3] = {2, 0, 1}, pids[3];
    char *argv[] = {(char *)own, (char *)"node", NULL};
    CHECK(bproc_move(at) == 0);
    bproc_set_node_map(of, 3);
    for (int n = -1; n < 3; n++) {
        int wanted = (n < 0 ? -1 : of[n]) + 10, pid;
        CHECK(CHILD(if (bproc_move(n) == 0) tell_node()) == wanted);
        if ((pid = bproc_rfork(n)) == 0) tell_node();
        CHECK(ended(pid) == wanted);
        if (bproc_vrfork(1, &n, pids) == 0) tell_node();
        CHECK(ended(pids[0]) == wanted);
        CHECK(CHILD(bproc_rexec(n, own, argv, environ)) == wanted);
        CHECK(CHILD(bproc_execmove(n, own, argv, environ)) == wanted);
        CHECK(bproc_vexecmove(1, &n, pids, own, argv, environ) == 1 && ended(pids[0]) == wanted);
        if (at < 0) CHECK(CHILD(if (bproc_move(n) == 0) bproc_execve(own, argv, environ)) == wanted);
    }
    // The pattern's way, too.
    int all[3] = {0, 1, 2}, rank = bproc_vrfork(3, all, pids);
    CHECK(rank >= 0);
    if (rank < 3) tell_node();
    for (int n = 0; n < 3; n++) CHECK(ended(pids[n]) == of[n] + 10);
}

// Which of the standard streams are open; 8: others are.
static int open_ones(void) {
    int mask = 0;
    for (int fd = 0; fd < 200; fd++)
        if (fcntl(fd, F_GETFD) >= 0) mask |= fd < 3 ? 1 << fd : 8;
    return mask;
}

// A child that waits to be told before it ends: who calls must not wait for its end.
static int told(int pid) {
    sigset_t set;
    int sig;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    if (pid == 0) {
        int mask = open_ones();
        CHECK(sigwait(&set, &sig) == 0);
        _exit(mask);
    }
    CHECK(pid > 0 && kill(pid, SIGUSR1) == 0);
    return ended(pid);
}

// What the caller has closed is closed in what comes of it, and keeps nobody waiting.
static void closed(int at) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    for (int mask = 0; mask < 8; mask++) {
        int child = fork(), nodes[4] = {0, 1, 2, 0}, pids[4], rank;
        CHECK(child >= 0);
        if (child > 0) {
            CHECK(ended(child) == 0);
            continue;
        }
        alarm(60);
        CHECK(bproc_move(at) == 0);
        for (int fd = 0; fd < 3; fd++)
            if (!(mask & 1 << fd)) close(fd);
        // Who leaves a node gets an empty input in any case.
        int input = at >= 0;
        CHECK((told(bproc_rfork(2)) | input) == (mask | input));
        for (int n = 1; n <= 4; n += 3) {
            rank = bproc_vrfork(n, nodes, pids);
            CHECK(rank >= 0);
            if (rank < n) told(0);
            for (int i = 0; i < n; i++) CHECK((told(pids[i]) | input) == (mask | input));
        }
        CHECK(bproc_move(at < 0 ? 0 : at) == 0 && open_ones() == mask);
        _exit(0);
    }
}

// Few descriptors: what forks natively forks.
static void limits(void) {
    for (int most = 65; most >= 20; most -= most > 60 ? 1 : 10) {
        struct rlimit limit = {(rlim_t)most, (rlim_t)most};
        int nodes[3] = {0, 1, 2}, pids[3], pid, child = fork(), rank;
        CHECK(child >= 0);
        if (child > 0) {
            CHECK(ended(child) == 0);
            continue;
        }
        CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
        if ((pid = bproc_rfork(1)) == 0) _exit(bproc_currnode() + 10);
        CHECK(ended(pid) == 11);
        CHECK((rank = bproc_vrfork(3, nodes, pids)) >= 0);
        if (rank < 3) _exit(20 + rank);
        for (int n = 0; n < 3; n++) CHECK(ended(pids[n]) == 20 + n);
        CHECK(bproc_move(0) == 0 && bproc_move(2) == 0 && bproc_move(-1) == 0);
        _exit(0);
    }
}

// Who has called by now.
static int callers(int listener) {
    int n = 0, fd;
    while ((fd = accept(listener, NULL, NULL)) >= 0) {
        close(fd);
        n++;
    }
    CHECK(errno == EAGAIN);
    return n;
}

// Nobody connects for a child that does not come.
static void sockets(int at) {
    struct sockaddr_in here;
    socklen_t size = sizeof here;
    struct bproc_io_t io;
    int nodes[2] = {77, 0}, pids[2], pid, rank;
    char *argv[] = {(char *)own, (char *)"node", NULL};
    CHECK(bproc_move(at) == 0);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    memset(&here, 0, sizeof here);
    here.sin_family = AF_INET;
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(listener >= 0 && bind(listener, (struct sockaddr *)&here, sizeof here) == 0 && listen(listener, 8) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&here, &size) == 0);
    memset(&io, 0, sizeof io);
    io.fd = 1;
    io.type = BPROC_IO_SOCKET;
    io.flags = BPROC_IO_SEND_INFO;
    memcpy(&io.d.addr, &here, sizeof io.d.addr);
    if ((pid = bproc_rfork_io(77, &io, 1)) == 0) _exit(0);
    CHECK(pid == -1 && errno == BE_INVALIDNODE && callers(listener) == 0);
    CHECK(bproc_move_io(77, &io, 1) == -1 && errno == BE_INVALIDNODE && callers(listener) == 0);
    CHECK(CHILD(if (bproc_rexec_io(77, &io, 1, own, argv, environ) < 0) _exit(errno == BE_INVALIDNODE)) == 1);
    CHECK(CHILD(if (bproc_execmove_io(77, &io, 1, own, argv, environ) < 0) _exit(errno == BE_INVALIDNODE)) == 1);
    CHECK(callers(listener) == 0);
    struct bproc_io_t both[2] = {io, io};
    memset(&both[1], 0, sizeof io);
    both[1].fd = 2;
    strcpy(both[1].d.file.name, "/no/such");
    if ((pid = bproc_rfork_io(at, both, 2)) == 0) _exit(0);
    CHECK(pid == -1 && errno == ENOENT && callers(listener) == 0);
    CHECK((rank = bproc_vrfork_io(2, nodes, pids, &io, 1)) >= 0);
    if (rank < 2) tell_node();
    CHECK(pids[0] == -BE_INVALIDNODE && ended(pids[1]) == 10 && callers(listener) == 1);
    CHECK(bproc_vexecmove_io(2, nodes, pids, &io, 1, own, argv, environ) == 2);
    CHECK(pids[0] == -BE_INVALIDNODE && ended(pids[1]) == 10 && callers(listener) == 1);
}

// A program without arguments gets an empty one, as Linux gives it; one without a name is not there.
static void arguments(int at) {
    char *none[] = {NULL}, **lists[] = {NULL, none};
    int nodes[2] = {0, 1}, pids[2], unknown = 77;
    CHECK(bproc_move(at) == 0);
    for (int i = 0; i < 2; i++) {
        char **list = lists[i];
        CHECK(CHILD(execve(own, list, environ)) == 33);
        for (int n = -1; n < 3; n++) {
            CHECK(CHILD(bproc_rexec(n, own, list, environ)) == 33);
            CHECK(CHILD(bproc_execmove(n, own, list, environ)) == 33);
        }
        // From a node it comes back to where its parent waits for it.
        for (int i = 0; i < 10; i++) CHECK(CHILD(bproc_execve(own, list, environ)) == 33);
        CHECK(bproc_vexecmove(2, nodes, pids, own, list, environ) == 2);
        CHECK(ended(pids[0]) == 33 && ended(pids[1]) == 33);
        CHECK(CHILD(if (bproc_rexec(77, own, list, environ) < 0) _exit(errno == BE_INVALIDNODE)) == 1);
        CHECK(CHILD(if (bproc_execmove(77, own, list, environ) < 0) _exit(errno == BE_INVALIDNODE)) == 1);
        CHECK(bproc_vexecmove(1, &unknown, pids, own, list, environ) == 1 && pids[0] == -BE_INVALIDNODE);
    }
    // From a node it goes there first.
    CHECK(CHILD(if (bproc_rexec(0, "", none, environ) < 0) _exit(errno == ENOENT)) == (at < 0 ? 1 : ENOENT));
    CHECK(CHILD(if (bproc_execmove(0, "", none, environ) < 0) _exit(errno == ENOENT)) == 1);
    if (at < 0) CHECK(CHILD(if (bproc_execve("", none, environ) < 0) _exit(errno == ENOENT)) == 1);
    CHECK(bproc_vexecmove(2, nodes, pids, "", none, environ) == -1 && errno == ENOENT);
}

int main(int argc, char **argv) {
    if (argc < 2) return argc == 1 && argv[0][0] == 0 ? 33 : 34;
    if (!strcmp(argv[1], "node")) tell_node();
    own = argv[0];
    memset(memory, 1, sizeof memory);
    int at = argc > 2 ? atoi(argv[2]) : -1, child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        if (!strcmp(argv[1], "map")) map(at);
        else if (!strcmp(argv[1], "closed")) closed(at);
        else if (!strcmp(argv[1], "limits")) limits();
        else if (!strcmp(argv[1], "sockets")) sockets(at);
        else if (!strcmp(argv[1], "arguments")) arguments(at);
        else return 2;
        // None is left.
        CHECK(waitpid(-1, NULL, 0) == -1 && errno == ECHILD);
        _exit(0);
    }
    CHECK(ended(child) == 0);
    puts("done");
    return 0;
}
