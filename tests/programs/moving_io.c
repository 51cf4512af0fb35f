// Moves itself and its children with lists of descriptors, and checks what they have. First argument: a directory. With a second
// one nodes are other machines: a socket is connected where the caller is.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/bproc.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static int report = 2;

#define CHECK(what) \
    do { \
        if (!(what)) { \
            dprintf(report, "line %d: %s, errno %d (%s)\n", __LINE__, #what, errno, bproc_strerror(errno)); \
            exit(1); \
        } \
    } while (0)

static volatile int children;
static const char *dir;

static void on_child(int sig) {
    (void)sig;
    children++;
}

static int ended_at(int line, int pid) {
    int status = -1, got = waitpid(pid, &status, 0);
    if (got != pid) dprintf(report, "line %d: waits for %d\n", line, pid);
    CHECK(got == pid);
    return status;
}
#define ended(pid) ended_at(__LINE__, pid)

static struct bproc_io_t file(int fd, const char *name, int flags, long offset) {
    struct bproc_io_t io;
    memset(&io, 0, sizeof io);
    io.fd = fd;
    io.type = BPROC_IO_FILE;
    io.d.file.flags = flags;
    io.d.file.mode = 0600;
    io.d.file.offset = offset;
    snprintf(io.d.file.name, sizeof io.d.file.name, "%s/%s", dir, name);
    return io;
}

static struct bproc_io_t back(int fd, int port, int flags) {
    struct bproc_io_t io;
    struct sockaddr_in to;
    memset(&io, 0, sizeof io);
    memset(&to, 0, sizeof to);
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    io.fd = fd;
    io.type = BPROC_IO_SOCKET;
    io.flags = flags;
    memcpy(&io.d.addr, &to, sizeof io.d.addr);
    return io;
}

// What the next caller sends, to its end.
static int from_socket(int listener, char *text, int room) {
    int got, all = 0, fd = accept(listener, 0, 0);
    CHECK(fd >= 0);
    while ((got = read(fd, text + all, room - 1 - all)) > 0) all += got;
    CHECK(got == 0);
    text[all] = 0;
    close(fd);
    return all;
}

static void text_of(const char *name, char *text, int room) {
    char path[400];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, O_RDONLY), got;
    CHECK(fd >= 0 && (got = read(fd, text, room - 1)) >= 0);
    text[got] = 0;
    close(fd);
}

// The child: exactly three descriptors.
static void look(int node, int file_fd) {
    char text[100];
    int got;
    report = file_fd;
    CHECK(bproc_currnode() == node);
    CHECK((got = read(0, text, sizeof text)) == 6 && memcmp(text, "input\n", 6) == 0);
    for (int fd = 2; fd < 100; fd++) CHECK((fcntl(fd, F_GETFD) >= 0) == (fd == file_fd));
    CHECK(write(1, "by socket", 9) == 9);
    CHECK(write(file_fd, "by file", 7) == 7);
}

int main(int argc, char **argv) {
    int status, pid, pids[2], nodes[2] = {1, 0};
    char text[400];
    struct sockaddr_in here;
    socklen_t size = sizeof here;
    struct bproc_io_t io[17];
    CHECK(argc >= 2);
    int apart = argc > 2;
    dir = argv[1];
    signal(SIGCHLD, on_child);
    alarm(60);
    snprintf(text, sizeof text, "%s/in", dir);
    FILE *in = fopen(text, "w");
    CHECK(in && fputs("the input\n", in) > 0 && fclose(in) == 0);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    memset(&here, 0, sizeof here);
    here.sin_family = AF_INET;
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(listener >= 0 && bind(listener, (struct sockaddr *)&here, sizeof here) == 0 && listen(listener, 8) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&here, &size) == 0);
    int port = ntohs(here.sin_port);

    // Lists that are none.
    memset(io, 0, sizeof io);
    CHECK(bproc_rfork_io(0, io, 17) == -1 && errno == EINVAL);
    CHECK(bproc_move_io(0, 0, 2) == -1 && errno == EFAULT);
    io[0].type = 2;
    CHECK(bproc_rfork_io(0, io, 1) == -1 && errno == EPERM);
    io[0] = file(0, "not-there", O_RDONLY, 0);
    CHECK(bproc_rfork_io(0, io, 1) == -1 && errno == ENOENT);
    CHECK(_bproc_rfork_io(0, io, 1, 64) == -1 && errno == EINVAL);
    CHECK(bproc_move_io(0, io, 1) == -1 && errno == ENOENT);
    CHECK(waitpid(-1, &status, WNOHANG) == -1 && errno == ECHILD && children == 0);

    // A child on a node.
    io[0] = file(0, "in", O_RDONLY, 4);
    io[1] = back(1, port, BPROC_IO_SEND_INFO);
    io[2] = file(5, "out", O_WRONLY | O_CREAT | O_TRUNC, 0);
    CHECK((pid = bproc_rfork_io(0, io, 3)) >= 0);
    if (pid == 0) {
        look(0, 5);
        _exit(21);
    }
    CHECK(from_socket(listener, text, sizeof text) == 8 + 9);
    CHECK(memcmp(text, &pid, 4) == 0 && text[4] == 1 && strcmp(text + 8, "by socket") == 0);
    status = ended(pid);
    if (status != 21 << 8) text_of("out", text, sizeof text), puts(text);
    CHECK(status == 21 << 8);
    text_of("out", text, sizeof text);
    CHECK(strcmp(text, "by file") == 0);

    // Two at once, and the flags of a dump.
    io[1] = back(1, port, 0);
    int rank = _bproc_vrfork_io(2, nodes, pids, io, 3, BPROC_DUMP_ALL);
    if (rank < 2) {
        look(nodes[rank], 5);
        _exit(30 + rank);
    }
    CHECK(rank == 2 && pids[0] > 0 && pids[1] > 0);
    for (int i = 0; i < 2; i++) CHECK(from_socket(listener, text, sizeof text) == 9);
    CHECK(ended(pids[0]) == 30 << 8 && ended(pids[1]) == 31 << 8);

    // The caller itself: to a node, on to another, and home.
    CHECK((pid = fork()) >= 0);
    if (pid == 0) {
        CHECK(bproc_move_io(1, io, 3) == 0);
        look(1, 5);
        if (apart) _exit(33);
        io[2] = file(7, "out2", O_WRONLY | O_CREAT | O_TRUNC, 0);
        CHECK(bproc_move_io(0, io, 3) == 0);
        look(0, 7);
        // No files at all.
        CHECK(bproc_move_io(1, io, 0) == 0);
        for (int fd = 0; fd < 100; fd++)
            if (fcntl(fd, F_GETFD) >= 0) _exit(2);
        io[2] = file(9, "out3", O_WRONLY | O_CREAT | O_TRUNC, 0);
        if (bproc_move_io(BPROC_NODE_MASTER, io, 3)) _exit(errno);
        look(-1, 9);
        _exit(33);
    }
    for (int i = 0; i < (apart ? 1 : 3); i++) CHECK(from_socket(listener, text, sizeof text) == 9);
    status = ended(pid);
    if (status != 33 << 8) text_of("out2", text, sizeof text), puts(text);
    CHECK(status == 33 << 8);
    text_of(apart ? "out" : "out3", text, sizeof text);
    CHECK(strcmp(text, "by file") == 0);

    // To where one is: an ordinary child.
    children = 0;
    CHECK((pid = bproc_rfork(BPROC_NODE_SELF)) >= 0);
    if (pid == 0) _exit(34);
    CHECK(ended(pid) == 34 << 8 && children == 1);
    CHECK(waitpid(-1, &status, WNOHANG) == -1 && errno == ECHILD);
    puts("done");
    return 0;
}
