/* Calls of 4.0 where no agent runs: what needs none, and how the others fail. */
#include "check.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/syscall.h>

static struct bproc_node_info_t node(int number, const char *state, unsigned mode)
{
    struct bproc_node_info_t info;
    memset(&info, 0, sizeof(info));
    info.node = number;
    info.mode = mode;
    strcpy(info.status, state);
    return info;
}

static void sets(void)
{
    struct bproc_node_set_t set, out = BPROC_EMPTY_NODESET, more = BPROC_EMPTY_NODESET;
    CHECK(bproc_nodeset_init(&set, 3) == 0 && set.size == 0 && set.alloc == 128 && set.node);
    CHECK(bproc_nodeset_grow(&set, 129) == 0 && set.alloc == 256);
    CHECK(bproc_nodeset_grow(&set, 1) == 0 && set.alloc == 256);
    FAILS(bproc_nodeset_grow(&set, -1), EINVAL);
    FAILS(bproc_nodeset_init(NULL, 1), EFAULT);
    for (int i = 0; i < 400; i++) {
        struct bproc_node_info_t one = node(2 * i, i % 3 ? "up" : "down", i % 2 ? 0111 : 0);
        CHECK(bproc_nodeset_add(&set, &one) == 0);
    }
    CHECK(set.size == 400 && set.alloc == 512 && bproc_node_set_node(&set, 399)->node == 798);
    FAILS(bproc_nodeset_add(&set, NULL), EFAULT);
    CHECK(bproc_nodeset_append(&more, &set) == 0 && bproc_nodeset_append(&more, &more) == 0 && more.size == 800);
    CHECK(more.node[400].node == 0 && more.node[799].node == 798);
    CHECK(bproc_nodeset_add(&more, bproc_node_set_node(&more, 1)) == 0 && more.node[800].node == 2);

    CHECK(bproc_nodefilter(&out, &set, "4,0,n2") == 0 && out.size == 3);
    CHECK(out.node[0].node == 4 && out.node[1].node == 0 && out.node[2].node == 2);
    CHECK(bproc_nodefilter(&out, &set, "up") == 0 && out.size == 266);
    CHECK(bproc_nodefilter(&out, &out, "2") == 0 && out.size == 1);
    CHECK(bproc_nodefilter(&out, &set, "boot") == 0 && out.size == 0);
    FAILS(bproc_nodefilter(&out, &set, "1"), BE_INVALIDNODE);
    FAILS(bproc_nodefilter(&out, &set, "3-1"), EINVAL);
    FAILS(bproc_nodefilter(&out, &set, NULL), EFAULT);

    /* The tests run as root: any execute bit will do. */
    if (geteuid() == 0) {
        int size = 5;
        CHECK(bproc_nodefilteraccessible(set.node, &size) == 0 && size == 1 && set.node[0].node == 2);
    }
    bproc_nodeset_free(&set);
    CHECK(!set.node && set.size == 0);
    bproc_nodeset_free(&set);
    bproc_nodeset_free(&out);
    bproc_nodeset_free(&more);
    bproc_nodeset_free(NULL);
}

static void errors(void)
{
    CHECK(!strcmp(bproc_strerror(BE_NODEDOWN), "Node is down"));
    CHECK(!strcmp(bproc_strerror(-BE_NODEDOWN), "Node is down"));
    CHECK(!strcmp(bproc_strerror(BE_INVALIDNODE), "Invalid node number"));
    CHECK(!strcmp(bproc_strerror(ENOENT), strerror(ENOENT)));
    CHECK(!strcmp(bproc_strerror(-ENOENT), strerror(ENOENT)));
    CHECK(*bproc_strerror(999999) && *bproc_strerror(-2147483647 - 1));
}

static void questions(void)
{
    char text[16];
    struct sockaddr_in in;
    struct sockaddr *addr = (struct sockaddr *)&in;
    int size = sizeof(in);
    struct bproc_node_info_t info;
    struct bproc_node_set_t set = BPROC_EMPTY_NODESET;
    struct bproc_proc_info_t *list;

    FAILS(bproc_numnodes(), ENOSYS);
    FAILS(bproc_currnode(), ENOSYS);
    FAILS(bproc_nodestatus(0, text, sizeof(text)), ENOSYS);
    FAILS(bproc_nodeaddr(0, addr, &size), ENOSYS);
    FAILS(bproc_masteraddr(addr, &size), ENOSYS);
    memset(&in, 0, sizeof(in));
    CHECK(bproc_nodenumber(addr, size) == BPROC_NODE_NONE && errno == EAFNOSUPPORT);
    CHECK(bproc_nodenumber(NULL, size) == BPROC_NODE_NONE && errno == EFAULT);
    in.sin_family = AF_INET;
    CHECK(bproc_nodenumber(addr, 4) == BPROC_NODE_NONE && errno == EINVAL);
    CHECK(bproc_nodenumber(addr, size) == BPROC_NODE_NONE && errno == ENOSYS);
    CHECK(bproc_getnodebyname("3") == BPROC_NODE_NONE && errno == ENOSYS);
    CHECK(bproc_getnodebyname("master") == BPROC_NODE_MASTER);
    FAILS(bproc_nodeinfo(0, &info), ENOSYS);
    FAILS(bproc_nodelist(&set), ENOSYS);
    FAILS(bproc_nodelist_(&set, -1), EBADF);
    FAILS(bproc_nodespec(&set, "0"), ENOSYS);
    FAILS(bproc_getnodeattr(0, "bproc.state", text, sizeof(text)), ENOSYS);
    FAILS(bproc_setnodeattr(0, "bproc.addr", "x", 1), EPERM);
    FAILS(bproc_setnodeattr(0, "colour", "x", 1), EINVAL);
    FAILS(bproc_setnodeattr(0, "bproc.colour", text, 65), E2BIG);
    FAILS(bproc_setnodeattr(0, "bproc.colour", "x", 1), ENOSYS);
    FAILS(bproc_chmod(0, 0111), ENOSYS);
    FAILS(bproc_chown(0, 0), ENOSYS);
    FAILS(bproc_chgrp(0, 0), ENOSYS);
    FAILS(bproc_chmod(BPROC_NODE_MASTER, 0), EINVAL);
    FAILS(bproc_chmod(BPROC_NODE_ANY, 0), BE_INVALIDNODE);
    FAILS(bproc_access(0, BPROC_X_OK), ENOSYS);
    FAILS(bproc_proclist(0, &list), ENOSYS);
    CHECK(bproc_pidnode(getpid()) == BPROC_NODE_NONE && errno == ENOSYS);
    FAILS(bproc_notifier(), ENOSYS);
    FAILS(bproc_nodesetstatus(0, "up"), ENOSYS);
    FAILS(bproc_nodechroot(0, "/"), ENOSYS);
    FAILS(bproc_nodereboot(0), ENOSYS);
    FAILS(bproc_nodehalt(0), ENOSYS);
    FAILS(bproc_nodepwroff(0), ENOSYS);
    FAILS(bproc_nodereboot_async(0), ENOSYS);
    FAILS(bproc_nodehalt_async(0), ENOSYS);
    FAILS(bproc_nodepwroff_async(0), ENOSYS);
    FAILS(bproc_nodereconnect(0, addr, size, NULL, 0), ENOSYS);
    FAILS(bproc_nodereconnect(0, NULL, 0, NULL, 0), EFAULT);
    FAILS(bproc_libclear(), ENOSYS);
    FAILS(bproc_libadd("/lib/x"), ENOSYS);
    FAILS(bproc_libadd(NULL), EFAULT);
    FAILS(bproc_libdel("/lib/x"), ENOSYS);
    char *paths;
    FAILS(bproc_liblist(&paths), ENOSYS);
}

static void creation(void)
{
    char *argv[] = {(char *)"true", NULL}, *envp[] = {NULL};
    struct bproc_io_t io[17];
    int nodes[2] = {0, 1}, pids[2] = {7, 7}, status;

    memset(io, 0, sizeof(io));
    io[0].type = BPROC_IO_MEMFILE;
    FAILS(bproc_rexec_io(0, io, 1, "/bin/true", argv, envp), EPERM);
    io[0].type = 9;
    FAILS(bproc_rexec_io(0, io, 1, "/bin/true", argv, envp), EINVAL);
    io[0].type = BPROC_IO_FILE;
    FAILS(bproc_rexec_io(0, io, 1, "/bin/true", argv, envp), ENOENT);
    memset(io[0].d.file.name, 'x', sizeof(io[0].d.file.name));
    FAILS(bproc_rexec_io(0, io, 1, "/bin/true", argv, envp), ENAMETOOLONG);
    strcpy(io[0].d.file.name, "/dev/null");
    FAILS(bproc_rexec_io(0, io, 1, "/bin/true", argv, envp), ENOSYS);
    FAILS(bproc_rexec_io(0, io, 17, "/bin/true", argv, envp), EINVAL);
    FAILS(bproc_rexec_io(0, io, -1, "/bin/true", argv, envp), EINVAL);
    FAILS(bproc_rexec_io(0, NULL, 1, "/bin/true", argv, envp), EFAULT);
    io[1] = io[0];
    FAILS(bproc_rexec_io(0, io, 2, "/bin/true", argv, envp), EINVAL);
    io[0].fd = -1;
    FAILS(bproc_execmove_io(0, io, 1, "/bin/true", argv, envp), EINVAL);
    io[0].fd = 0;
    io[0].flags = 4;
    FAILS(bproc_execmove_io(0, io, 1, "/bin/true", argv, envp), EINVAL);
    io[0].flags = 0;
    io[0].type = BPROC_IO_SOCKET;
    FAILS(bproc_execmove_io(0, io, 1, "/bin/true", argv, envp), EAFNOSUPPORT);

    CHECK(bproc_vexecmove(0, nodes, pids, "/bin/true", argv, envp) == 0);
    FAILS(bproc_vexecmove(-1, nodes, pids, "/bin/true", argv, envp), EINVAL);
    FAILS(bproc_vexecmove(2, NULL, pids, "/bin/true", argv, envp), EFAULT);
    FAILS(bproc_vexecmove(2, nodes, pids, "/no/such", argv, envp), ENOENT);
    CHECK(pids[0] == -ENOENT && pids[1] == -ENOENT);
    FAILS(bproc_vexecmove(2, nodes, pids, "/bin/true", argv, envp), ENOSYS);
    CHECK(pids[0] == -ENOSYS && pids[1] == -ENOSYS);
    FAILS(bproc_vexecmove_io(2, nodes, pids, io, 99, "/bin/true", argv, envp), EINVAL);
    CHECK(waitpid(-1, &status, 0) == -1 && errno == ECHILD);

    /* At home these are plain exec. */
    char *sh[] = {(char *)"sh", (char *)"-c", (char *)"exit $CODE", NULL}, *code[] = {(char *)"CODE=5", NULL};
    IN_CHILD(status, bproc_execve("/bin/sh", sh, code));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 5);
    FAILS(bproc_execve("/no/such", sh, code), ENOENT);
    IN_CHILD(status, bproc_execmove_io(BPROC_NODE_MASTER, NULL, 0, "/bin/sh", sh, code));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 5);
    IN_CHILD(status, bproc_rexec(BPROC_NODE_MASTER, "/bin/sh", sh, code));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 5);
    IN_CHILD(status, bproc_execmove(BPROC_NODE_MASTER, "/bin/sh", sh, code));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 5);
}

static void absent(void)
{
    int nodes[1] = {0}, pids[1];
    FAILS(_bproc_move(0, 0), ENOSYS);
    FAILS(bproc_move_io(0, NULL, 0), ENOSYS);
    FAILS(_bproc_move_io(0, NULL, 0, 0), ENOSYS);
    FAILS(_bproc_rfork(0, 0), ENOSYS);
    FAILS(bproc_rfork_io(0, NULL, 0), ENOSYS);
    FAILS(_bproc_rfork_io(0, NULL, 0, 0), ENOSYS);
    CHECK(bproc_vrfork(1, nodes, pids) == 1 && pids[0] == -ENOSYS);
    CHECK(_bproc_vrfork(1, nodes, pids, 0) == 1 && pids[0] == -ENOSYS);
    CHECK(bproc_vrfork_io(1, nodes, pids, NULL, 0) == 1 && pids[0] == -ENOSYS);
    CHECK(_bproc_vrfork_io(1, nodes, pids, NULL, 0, 0) == 1 && pids[0] == -ENOSYS);
    /* As function pointers they are those of 4.0. */
    int (*move)(int) = bproc_move;
    int (*fork_there)(int) = bproc_rfork;
    int (*where)(int, struct sockaddr *, int *) = bproc_nodeaddr;
    CHECK(move(0) == -1 && fork_there(0) == -1 && where(0, NULL, NULL) == -1);
}

/* Dumped to a file, undumped by a child: it goes on with its memory, and with the child's pid. */
static void images(void)
{
    char name[] = "/tmp/bproc-dump-XXXXXX";
    int fd = mkstemp(name), status;
    volatile int memory = 40;
    pid_t first = getpid();

    CHECK(fd >= 0 && unlink(name) == 0);
    int got = bproc_dump(fd, BPROC_DUMP_ALL);
    if (got == 0)
        _exit(getpid() != first ? memory + 2 : 98);
    CHECK(got > 4096 && lseek(fd, 0, SEEK_CUR) == got);
    memory = 1;
    IN_CHILD(status, {
        lseek(fd, 0, SEEK_SET);
        bproc_undump(fd);
        perror("bproc_undump");
    });
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42);
    /* A bad image leaves the caller as it is. */
    CHECK(ftruncate(fd, got / 2) == 0 && lseek(fd, 0, SEEK_SET) == 0);
    CHECK(bproc_undump(fd) == -1 && errno != 0 && memory == 1);
    CHECK(ftruncate(fd, 0) == 0 && write(fd, "no image at all, but some bytes of text", 39) == 39);
    CHECK(lseek(fd, 0, SEEK_SET) == 0 && bproc_undump(fd) == -1);
    close(fd);
}

/* Dumped as it begins, and run from there as often as it is undumped. */
static void program(int flags)
{
    char name[] = "/tmp/bproc-program-XXXXXX";
    char *argv[] = {(char *)"sh", (char *)"-c", (char *)"test \"$1 $GREETING\" = 'one hello' && exit 7", (char *)"sh",
                    (char *)"one", NULL};
    char *envp[] = {(char *)"GREETING=hello", NULL};
    int fd = mkstemp(name), status, i;

    CHECK(fd >= 0 && unlink(name) == 0);
    IN_CHILD(status, {
        bproc_execdump(fd, flags, "/bin/sh", argv, envp);
        perror("bproc_execdump");
    });
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0 && lseek(fd, 0, SEEK_CUR) > 4096);
    for (i = 0; i < 2; i++) {
        IN_CHILD(status, {
            lseek(fd, 0, SEEK_SET);
            bproc_undump(fd);
            perror("bproc_undump");
        });
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    }
    /* One that cannot be executed leaves the caller as it is, and nothing besides. */
    FAILS(bproc_execdump(fd, flags, "/no/such/program", argv, envp), ENOENT);
    FAILS(bproc_execdump(fd, flags, "/", argv, envp), EACCES);
    FAILS(bproc_execdump(-1, flags, "/bin/sh", argv, envp), EBADF);
    FAILS(bproc_execdump(fd, 8, "/bin/sh", argv, envp), EINVAL);
    FAILS(bproc_execdump(fd, flags, NULL, argv, envp), EFAULT);
    FAILS(waitpid(-1, NULL, __WALL), ECHILD);
    /* One that cannot be written, or cannot be dumped, never runs. */
    char ran[] = "/tmp/bproc-ran-XXXXXX", script[200];
    int left = mkstemp(ran), readable = open("/dev/null", O_RDONLY);
    snprintf(script, sizeof script, "echo ran > %s", ran);
    argv[2] = script;
    CHECK(left >= 0 && readable >= 0);
    FAILS(bproc_execdump(readable, flags, "/bin/sh", argv, envp), EBADF);
    long watched = syscall(SYS_userfaultfd, 1 /* UFFD_USER_MODE_ONLY */);
    if (watched >= 0) {
        FAILS(bproc_execdump(fd, flags, "/bin/sh", argv, envp), EOPNOTSUPP);
        close((int)watched);
    }
    FAILS(waitpid(-1, NULL, __WALL), ECHILD);
    CHECK(lseek(left, 0, SEEK_END) == 0 && unlink(ran) == 0);
    close(left), close(readable), close(fd);
}

int main(void)
{
    begin();
    sets();
    errors();
    questions();
    creation();
    absent();
    images();
    program(0);
    program(BPROC_DUMP_ALL);
    return 0;
}
