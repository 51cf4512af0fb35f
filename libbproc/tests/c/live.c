/* Against a real agent: nodes 0 and up that are up and open to the caller. */
#include "check.h"

#include <fcntl.h>
#include <poll.h>

static char *environment[] = {(char *)"PATH=/usr/bin:/bin", (char *)"BPROC_RANK=XXXXXXX", NULL};

static char *sh(const char *script, char **argv)
{
    argv[0] = (char *)"sh";
    argv[1] = (char *)"-c";
    argv[2] = (char *)script;
    argv[3] = NULL;
    return argv[0];
}

/* The call fails so, and leaves its caller as it was: in a child, for who has children on a node is known there. */
#define FAILS_THERE(call, number)                                                                                    \
    do {                                                                                                             \
        int status_;                                                                                                 \
        IN_CHILD(status_, FAILS(call, number); _exit(0));                                                            \
        CHECK(WIFEXITED(status_) && WEXITSTATUS(status_) == 0);                                                      \
    } while (0)

/* A pipe's text after all writers are gone. */
static void drain(int fd, char *text, int room)
{
    int got = 0, n;
    while ((n = read(fd, text + got, room - 1 - got)) > 0)
        got += n;
    text[got] = 0;
    close(fd);
}

static void rexec(void)
{
    char *argv[4], text[4096];
    int status, out[2], err[2];
    IN_CHILD(status, sh("exit 7", argv); bproc_rexec(0, "/bin/sh", argv, environment); _exit(errno));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    IN_CHILD(status, sh("kill -TERM $$", argv); bproc_rexec(0, "/bin/sh", argv, environment); _exit(errno));
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    sh("", argv);
    IN_CHILD(status, bproc_rexec(0, "/bin/true", argv, environment); _exit(errno));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    IN_CHILD(status, bproc_rexec(0, "/bin/false", argv, environment); _exit(errno));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    FAILS_THERE(bproc_rexec(0, "/no/such", argv, environment), ENOENT);
    FAILS_THERE(bproc_rexec(0, "/etc/passwd", argv, environment), EACCES);
    FAILS(bproc_rexec(4711, "/bin/true", argv, environment), BE_INVALIDNODE);

    /* Output, apart; input is empty; the pid is the caller's. */
    CHECK(pipe(out) == 0 && pipe(err) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        dup2(out[1], 1);
        dup2(err[1], 2);
        close(out[0]), close(out[1]), close(err[0]), close(err[1]);
        sh("cat; echo to-err >&2; echo pid $$", argv);
        bproc_rexec(0, "/bin/sh", argv, environment);
        _exit(errno);
    }
    close(out[1]), close(err[1]);
    char wanted[32];
    snprintf(wanted, sizeof(wanted), "pid %d\n", child);
    drain(out[0], text, sizeof(text));
    CHECK(!strcmp(text, wanted));
    drain(err[0], text, sizeof(text));
    CHECK(!strcmp(text, "to-err\n"));
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* Exactly the descriptors of the list. */
static void lists(void)
{
    char name[] = "/tmp/bproc-live-XXXXXX", text[256], *argv[4];
    int fd = mkstemp(name), status;
    struct bproc_io_t io[2];
    memset(io, 0, sizeof(io));
    io[0].fd = 1;
    io[0].d.file.flags = O_WRONLY | O_APPEND;
    io[1].fd = 7;
    io[1].d.file.flags = O_RDONLY;
    strcpy(io[0].d.file.name, name);
    strcpy(io[1].d.file.name, "/etc/hostname");
    CHECK(fd >= 0 && write(fd, "old\n", 4) == 4);
    sh("for f in 0 2 7; do if true >&$f; then echo $f; fi; done; exit 3", argv);
    IN_CHILD(status, bproc_rexec_io(0, io, 2, "/bin/sh", argv, environment); _exit(errno));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 3);
    lseek(fd, 0, SEEK_SET);
    drain(fd, text, sizeof(text));
    CHECK(!strcmp(text, "old\n7\n"));
    unlink(name);
    io[0].d.file.flags = O_WRONLY;
    strcpy(io[0].d.file.name, "/no/such/file");
    FAILS_THERE(bproc_rexec_io(0, io, 2, "/bin/sh", argv, environment), ENOENT);
}

static void execmove(void)
{
    char *argv[4];
    int status;
    sh("exit 9", argv);
    IN_CHILD(status, bproc_execmove(0, "/bin/sh", argv, environment); _exit(errno));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 9);
    IN_CHILD(status, chdir("/bin"); bproc_execmove(0, "./sh", argv, environment); _exit(errno));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 9);
    FAILS(bproc_execmove(0, "/no/such", argv, environment), ENOENT);
}

static void vexecmove(const struct bproc_node_set_t *set)
{
    char *argv[4];
    int nodes[40], pids[40], status, n = 0;
    for (int i = 0; i < 20; i++)
        nodes[n++] = set->node[i % set->size].node;
    nodes[n++] = 4711;
    sh("exit $(expr 100 + $BPROC_RANK)", argv);
    CHECK(bproc_vexecmove(n, nodes, pids, "/bin/sh", argv, environment) == n);
    CHECK(pids[20] == -BE_INVALIDNODE);
    for (int i = 0; i < 20; i++) {
        CHECK(pids[i] > 0 && waitpid(pids[i], &status, 0) == pids[i]);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 100 + i);
    }
    CHECK(waitpid(-1, &status, __WALL) == -1 && errno == ECHILD);

    /* Ordinary children: seen where they are, killed as any. */
    sh("exec sleep 40", argv);
    CHECK(bproc_vexecmove(1, nodes, pids, "/bin/sh", argv, environment) == 1 && pids[0] > 0);
    struct bproc_proc_info_t *list;
    int found = 0, count = bproc_proclist(nodes[0], &list);
    for (int i = 0; i < count; i++)
        found += list[i].pid == pids[0] && list[i].node == nodes[0];
    CHECK(count >= 1 && found == 1);
    free(list);
    CHECK(bproc_pidnode(pids[0]) == nodes[0]);
    CHECK(kill(pids[0], SIGTERM) == 0 && waitpid(pids[0], &status, 0) == pids[0]);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    CHECK(bproc_pidnode(pids[0]) == BPROC_NODE_NONE);
}

static void notifier(int node)
{
    struct bproc_node_info_t info;
    struct bproc_node_set_t set = BPROC_EMPTY_NODESET;
    char text[16];
    int fd = bproc_notifier();
    struct pollfd poller = {fd, POLLIN, 0};
    CHECK(fd >= 0 && bproc_nodeinfo(node, &info) == 0);
    if (geteuid() == 0) {
        /* The group, and back: what others run there is not disturbed. */
        CHECK(bproc_chgrp(node, 4242) == 0);
        CHECK(poll(&poller, 1, 20000) == 1 && bproc_nodelist_(&set, fd) > 0);
        CHECK(bproc_nodeinfo(node, &info) == 0 && info.group == 4242);
        CHECK(bproc_chgrp(node, 0) == 0);
        CHECK(bproc_setnodeattr(node, BPROC_ADDR_XATTR, "x", 1) == -1 && errno == EPERM);
        FAILS(bproc_nodesetstatus(node, "not a state"), EINVAL);
        CHECK(bproc_getnodeattr(node, BPROC_STATE_XATTR, text, sizeof(text)) == 2 && !strcmp(text, "up"));
    }
    close(fd);
    bproc_nodeset_free(&set);
}

int main(void)
{
    struct bproc_node_set_t set = BPROC_EMPTY_NODESET;
    begin();
    CHECK(bproc_numnodes() >= 1 && bproc_nodelist(&set) == bproc_numnodes());
    CHECK(bproc_nodespec(&set, "up") == 0 && set.size >= 1);
    CHECK(bproc_nodefilteraccessible(set.node, &set.size) == 0 && set.size >= 1);
    CHECK(bproc_nodeup(set.node[0].node) && bproc_access(set.node[0].node, BPROC_X_OK) == 0);
    CHECK(bproc_currnode() == BPROC_NODE_MASTER);
    CHECK(set.node[0].node == 0);
    CHECK(bproc_nodenumber(&set.node[0].addr, sizeof(struct sockaddr)) == 0);
    rexec();
    lists();
    execmove();
    vexecmove(&set);
    notifier(set.node[0].node);
    bproc_nodeset_free(&set);
    return 0;
}
