// Programs and children by the library, from the master and from a node, to where one is and elsewhere, with lists of
// descriptors. First argument: a directory.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/bproc.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static int report = 2;

#define CHECK(what) \
    do { \
        if (!(what)) { \
            dprintf(report, "line %d: %s, errno %d (%s)\n", __LINE__, #what, errno, bproc_strerror(errno)); \
            _exit(1); \
        } \
    } while (0)

static const char *dir;
static int mask = 022;
static const char *self;
static char socket_entry[300];

static int ended_at(int line, int pid) {
    int status = -1, got;
    while ((got = waitpid(pid, &status, 0)) < 0 && errno == EINTR) continue;
    if (got != pid) dprintf(report, "line %d: waits for %d, errno %d\n", line, pid, errno);
    CHECK(got == pid);
    return status;
}
#define ended(pid) ended_at(__LINE__, pid)

static struct bproc_io_t file(int fd, const char *name, int flags) {
    struct bproc_io_t io;
    memset(&io, 0, sizeof io);
    io.fd = fd;
    io.type = BPROC_IO_FILE;
    io.d.file.flags = flags;
    io.d.file.mode = 0666;
    // In the working directory, which is that directory.
    snprintf(io.d.file.name, sizeof io.d.file.name, "%s", name);
    return io;
}

// The file's contents are this text; it goes.
static int holds(const char *name, const char *wanted) {
    char path[400], text[400];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, O_RDONLY), got = fd < 0 ? -1 : (int)read(fd, text, sizeof text - 1);
    struct stat of;
    CHECK(fd < 0 || fstat(fd, &of) == 0);
    if (fd >= 0 && (of.st_mode & 0777) != (mode_t)(0666 & ~mask)) dprintf(report, "%s has mode %o\n", name, of.st_mode), got = -1;
    if (fd >= 0) close(fd);
    unlink(path);
    if (got < 0) return 0;
    text[got] = 0;
    if (strcmp(text, wanted)) dprintf(report, "%s holds %s\n", name, text);
    return strcmp(text, wanted) == 0;
}

// As which program: `NODE PPID FD`: is it there, and has it exactly 0 and FD, or the standard ones?
static int look(char **argv) {
    int fd = atoi(argv[4]);
    const char *rank = getenv("BPROC_RANK");
    if (bproc_currnode() != atoi(argv[2])) return 2;
    if (getppid() != atoi(argv[3])) return 3;
    if (fd > 2) {
        for (int i = 0; i < 100; i++)
            if ((fcntl(i, F_GETFD) >= 0) != (i == 0 || i == fd)) return 10 + i;
        if (dprintf(fd, "from %s", argv[2]) < 0) return 4;
    }
    return 40 + (rank ? atoi(rank) : 0);
}

enum call { EXECVE, REXEC, EXECMOVE, REXEC_IO, EXECMOVE_IO };

// A child that becomes the program.
static int run(enum call how, int node, int real, int parent) {
    char where[20], whose[20], fd[] = "7", none[] = "0", word[] = "look";
    struct bproc_io_t io[2];
    snprintf(where, sizeof where, "%d", real);
    snprintf(whose, sizeof whose, "%d", parent);
    char *argv[] = {(char *)self, word, where, whose, how >= REXEC_IO ? fd : none, NULL};
    char *envp[] = {socket_entry, NULL};
    io[0] = file(0, "in", O_RDONLY);
    io[1] = file(7, "out", O_WRONLY | O_CREAT | O_TRUNC);
    switch (how) {
    case EXECVE: bproc_execve(self, argv, envp); break;
    case REXEC: bproc_rexec(node, self, argv, envp); break;
    case EXECMOVE: bproc_execmove(node, self, argv, envp); break;
    case REXEC_IO: bproc_rexec_io(node, io, 2, self, argv, envp); break;
    case EXECMOVE_IO: bproc_execmove_io(node, io, 2, self, argv, envp); break;
    }
    return errno;
}

static void programs(int here) {
    int me = getpid(), pid, wanted[20];
    const int nodes[] = {0, 1, 2, BPROC_NODE_MASTER, BPROC_NODE_SELF};
    for (int i = 0; i < 5; i++) {
        int real = nodes[i] == BPROC_NODE_SELF ? here : nodes[i];
        for (int how = REXEC; how <= EXECMOVE_IO; how++) {
            CHECK((pid = fork()) >= 0);
            if (pid == 0) _exit(run((enum call)how, nodes[i], real, me));
            int status = ended(pid);
            if (status != 40 << 8) dprintf(report, "call %d from %d to %d: status %#x\n", how, here, nodes[i], status);
            CHECK(status == 40 << 8);
            char text[20];
            snprintf(text, sizeof text, "from %d", real);
            if (how >= REXEC_IO) CHECK(holds("out", text));
        }
    }
    // The master's program, here.
    CHECK((pid = fork()) >= 0);
    if (pid == 0) _exit(run(EXECVE, 0, here, me));
    int got = ended(pid);
    if (got != 40 << 8) dprintf(report, "execve on %d: status %#x\n", here, got);
    CHECK(got == 40 << 8);
    // What fails leaves the caller where it is.
    char *argv[] = {(char *)self, NULL}, *envp[] = {NULL};
    CHECK(bproc_rexec(99, self, argv, envp) == -1 && errno == BE_INVALIDNODE);
    CHECK(bproc_execmove(99, self, argv, envp) == -1 && errno == BE_INVALIDNODE);
    CHECK(bproc_execmove(1, "/nowhere/at/all", argv, envp) == -1 && errno == ENOENT);
    int kept = open("/dev/zero", O_RDONLY);
    CHECK(kept > 2);
    for (int i = 0; i < 5; i++) CHECK(bproc_rexec(nodes[i], "/nowhere/at/all", argv, envp) == -1 && errno == ENOENT);
    CHECK(bproc_execve("/nowhere/at/all", argv, envp) == -1 && errno == ENOENT);
    CHECK(bproc_execve("/etc", argv, envp) == -1 && errno == EACCES);
    CHECK(bproc_currnode() == here && getpid() == me && close(kept) == 0);

    // Many at once, with and without a list.
    for (int with = 0; with < 2; with++) {
        int list[] = {1, 99, 0, BPROC_NODE_MASTER, 2, 1}, pids[6];
        char where[20], whose[20], rank[] = "BPROC_RANK=XXXXXXX", word[] = "rank", none[] = "0";
        snprintf(where, sizeof where, "%d", 0);
        snprintf(whose, sizeof whose, "%d", me);
        char *arguments[] = {(char *)self, word, where, whose, none, NULL}, *entries[] = {rank, socket_entry, NULL};
        struct bproc_io_t io[1];
        io[0] = file(0, "in", O_RDONLY);
        int n = with ? bproc_vexecmove_io(6, list, pids, io, 1, self, arguments, entries)
                     : bproc_vexecmove(6, list, pids, self, arguments, entries);
        CHECK(n == 6 && getpid() == me);
        for (int i = 0; i < 6; i++) {
            if (i == 1) {
                CHECK(pids[i] == -BE_INVALIDNODE);
                continue;
            }
            if (pids[i] <= 0) dprintf(report, "rank %d from %d: %d\n", i, here, pids[i]);
            CHECK(pids[i] > 0);
            wanted[i] = (60 + 10 * (list[i] + 1) + i) << 8;
            int status = ended(pids[i]);
            if (status != wanted[i]) dprintf(report, "rank %d from %d: status %#x\n", i, here, status);
            CHECK(status == wanted[i]);
        }
    }
}

// Children of a process, where it is and elsewhere, with a list.
static void children(int here) {
    int me = getpid(), pid, pids[4], list[] = {BPROC_NODE_SELF, 1, 99, 0};
    struct bproc_io_t io[2];
    char text[100];
    io[0] = file(0, "in", O_RDONLY);
    io[1] = file(9, "out", O_WRONLY | O_CREAT | O_TRUNC);
    CHECK((pid = bproc_rfork_io(BPROC_NODE_SELF, io, 2)) >= 0);
    if (pid == 0) {
        report = 9;
        CHECK(bproc_currnode() == here && getppid() == me);
        for (int i = 0; i < 100; i++) CHECK((fcntl(i, F_GETFD) >= 0) == (i == 0 || i == 9));
        CHECK(read(0, text, sizeof text) == 10 && memcmp(text, "the input\n", 10) == 0);
        dprintf(9, "here");
        _exit(70);
    }
    int status = ended(pid);
    if (status != 70 << 8) CHECK(holds("out", "nothing wrong"));
    CHECK(status == 70 << 8 && holds("out", "here"));
    io[0] = file(0, "not-there", O_RDONLY);
    CHECK(bproc_rfork_io(BPROC_NODE_SELF, io, 2) == -1 && errno == ENOENT);
    io[0] = file(0, "in", O_RDONLY);
    int rank = bproc_vrfork_io(4, list, pids, io, 1);
    if (rank >= 0 && rank < 4) {
        int node = rank == 0 ? here : list[rank];
        for (int i = 0; i < 100; i++)
            if ((fcntl(i, F_GETFD) >= 0) != (i == 0)) _exit(2);
        if (bproc_currnode() != node || getppid() != me) _exit(3);
        _exit(80 + rank);
    }
    CHECK(rank == 4 && pids[2] == -BE_INVALIDNODE);
    for (int i = 0; i < 4; i++)
        if (i != 2) {
            status = ended(pids[i]);
            if (status != (80 + i) << 8) dprintf(report, "rank %d from %d: status %#x\n", i, here, status);
            CHECK(status == (80 + i) << 8);
        }
    pid = waitpid(-1, &status, __WALL);
    if (pid != -1) dprintf(report, "on %d, a child that nobody made: %d, status %#x\n", here, pid, status);
    CHECK(pid == -1 && errno == ECHILD);
}

int main(int argc, char **argv) {
    if (argc == 5 && !strcmp(argv[1], "look")) return look(argv);
    if (argc == 5 && !strcmp(argv[1], "rank")) {
        if (getppid() != atoi(argv[3])) return 3;
        return 60 + 10 * (bproc_currnode() + 1) + atoi(getenv("BPROC_RANK"));
    }
    if (argc != 2) return 2;
    self = argv[0];
    dir = argv[1];
    alarm(100);
    snprintf(socket_entry, sizeof socket_entry, "BPROC_SOCKET=%s", getenv("BPROC_SOCKET"));
    char path[400];
    snprintf(path, sizeof path, "%s/in", dir);
    CHECK(chdir(dir) == 0);
    umask(mask);
    FILE *in = fopen(path, "w");
    CHECK(in && fputs("the input\n", in) > 0 && fclose(in) == 0);
    programs(BPROC_NODE_MASTER);
    children(BPROC_NODE_MASTER);
    CHECK(bproc_move(0) == 0);
    umask(mask = 027);
    programs(0);
    children(0);
    CHECK(bproc_move(BPROC_NODE_MASTER) == 0);
    puts("done");
    return 0;
}
