/* Against a stand-in for the agent: nodes 0 and 1 are up, 5 is down; it "runs" programs without descriptors. */
#include "check.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>

static void questions(void)
{
    char text[16];
    struct sockaddr_in in;
    struct sockaddr *addr = (struct sockaddr *)&in;
    int size = sizeof(in);
    struct bproc_node_info_t info;
    struct bproc_node_set_t set = BPROC_EMPTY_NODESET;
    struct bproc_proc_info_t *list;

    CHECK(bproc_numnodes() == 3);
    CHECK(bproc_nodeup(0) && bproc_nodeup(1) && !bproc_nodeup(5) && !bproc_nodeup(2));
    CHECK(bproc_currnode() == BPROC_NODE_MASTER);
    CHECK(bproc_nodestatus(5, text, sizeof(text)) == 4 && !strcmp(text, "down"));
    CHECK(bproc_nodestatus(BPROC_NODE_MASTER, text, sizeof(text)) == 2 && !strcmp(text, "up"));
    FAILS(bproc_nodestatus(2, text, sizeof(text)), BE_INVALIDNODE);
    FAILS(bproc_nodestatus(0, text, 2), ERANGE);
    FAILS(bproc_nodestatus(0, NULL, 2), EFAULT);

    CHECK(bproc_nodeaddr(1, addr, &size) == 0 && size == 16 && in.sin_family == AF_INET);
    CHECK(in.sin_addr.s_addr == inet_addr("127.0.0.2"));
    CHECK(bproc_nodenumber(addr, size) == 1);
    CHECK(bproc_nodeaddr(0, addr, sizeof(in)) == 0 && in.sin_addr.s_addr == inet_addr("127.0.0.1"));
    size = 8;
    FAILS(bproc_nodeaddr(1, addr, &size), EINVAL);
    FAILS(bproc_nodeaddr(1, addr, 8), EINVAL);
    size = sizeof(in);
    FAILS(bproc_nodeaddr(2, addr, &size), BE_INVALIDNODE);
    FAILS(bproc_nodeaddr(1, NULL, &size), EFAULT);
    CHECK(bproc_masteraddr(addr, &size) == 0 && in.sin_addr.s_addr == inet_addr("127.0.0.100"));
    CHECK(bproc_nodenumber(addr, size) == BPROC_NODE_MASTER);
    in.sin_addr.s_addr = inet_addr("127.9.9.9");
    CHECK(bproc_nodenumber(addr, size) == BPROC_NODE_NONE);

    CHECK(bproc_getnodebyname("1") == 1 && bproc_getnodebyname("n5") == 5 && bproc_getnodebyname(".0") == 0);
    CHECK(bproc_getnodebyname("master") == -1 && bproc_getnodebyname("self") == -1);
    CHECK(bproc_getnodebyname("127.0.0.2") == 1);
    CHECK(bproc_getnodebyname("2") == BPROC_NODE_NONE && errno == BE_INVALIDNODE);

    CHECK(bproc_nodeinfo(5, &info) == 0 && info.node == 5 && !strcmp(info.status, "down") && info.mode == 0);
    CHECK(bproc_nodeinfo(1, &info) == 0 && info.mode == 0111 && info.user == 10 && info.group == 20);
    CHECK(((struct sockaddr_in *)&info.addr)->sin_addr.s_addr == inet_addr("127.0.0.2"));
    CHECK(bproc_nodeinfo(BPROC_NODE_SELF, &info) == 0 && info.node == BPROC_NODE_MASTER);
    FAILS(bproc_nodeinfo(1, NULL), EFAULT);
    CHECK(bproc_nodelist(&set) == 3 && set.size == 3 && set.node[2].node == 5);
    CHECK(bproc_nodelist(&set) == 3 && set.size == 3);
    CHECK(bproc_nodespec(&set, "up") == 0 && set.size == 2);
    CHECK(bproc_nodespec(&set, "5,master") == 0 && set.size == 2 && set.node[1].node == BPROC_NODE_MASTER);
    FAILS(bproc_nodespec(&set, "3"), BE_INVALIDNODE);
    bproc_nodeset_free(&set);

    CHECK(bproc_getnodeattr(1, BPROC_STATE_XATTR, text, sizeof(text)) == 2 && !strcmp(text, "up"));
    CHECK(bproc_getnodeattr(1, BPROC_STATE_XATTR, NULL, 0) == 2);
    FAILS(bproc_getnodeattr(1, BPROC_STATE_XATTR, text, 1), ERANGE);
    CHECK(bproc_getnodeattr(1, BPROC_ADDR_XATTR, &in, sizeof(in)) == 16 && in.sin_family == AF_INET);
    CHECK(bproc_getnodeattr(1, "bproc.colour", text, sizeof(text)) == 4 && !strcmp(text, "blue"));
    FAILS(bproc_getnodeattr(1, "bproc.size", text, sizeof(text)), ENODATA);
    FAILS(bproc_getnodeattr(1, "colour", text, sizeof(text)), EINVAL);

    CHECK(bproc_access(1, BPROC_X_OK) == 0 && bproc_access(1, 0) == 0);
    CHECK(bproc_access(BPROC_NODE_MASTER, BPROC_X_OK) == 0);
    FAILS(bproc_access(5, BPROC_X_OK), EACCES);
    FAILS(bproc_access(1, 4), EINVAL);

    CHECK(bproc_proclist(BPROC_NODE_ANY, &list) == 2 && list[0].pid == 42 && list[0].node == 1);
    free(list);
    CHECK(bproc_proclist(0, &list) == 1 && list[0].pid == 1343000 && list[0].node == 0);
    free(list);
    CHECK(bproc_proclist(5, &list) == 0);
    free(list);
    FAILS(bproc_proclist(2, &list), BE_INVALIDNODE);
    FAILS(bproc_proclist(0, NULL), EFAULT);
    CHECK(bproc_pidnode(42) == 1 && bproc_pidnode(getpid()) == BPROC_NODE_MASTER);
    CHECK(bproc_pidnode(-1) == BPROC_NODE_NONE && errno == BE_INVALIDPROC);
    CHECK(bproc_pidnode(0) == BPROC_NODE_NONE);
}

static void changes(void)
{
    struct bproc_node_set_t set = BPROC_EMPTY_NODESET;
    struct sockaddr_in in;
    char *list;
    /* The stand-in takes changes of node 0 only. */
    CHECK(bproc_chmod(0, 0755) == 0 && bproc_chown(0, 10) == 0 && bproc_chgrp(0, 20) == 0);
    FAILS(bproc_chmod(1, 0), EPERM);
    CHECK(bproc_nodesetstatus(0, "drained") == 0);
    CHECK(bproc_setnodeattr(0, BPROC_STATE_XATTR, "drained", 8) == 0);
    CHECK(bproc_setnodeattr(0, BPROC_STATE_XATTR, "drained", 7) == 0);
    CHECK(bproc_setnodeattr(0, "bproc.colour", "blue", 4) == 0);
    CHECK(bproc_nodereboot(0) == 0 && bproc_nodehalt(0) == 0 && bproc_nodepwroff(0) == 0);
    CHECK(bproc_nodereboot_async(0) == 0 && bproc_nodehalt_async(0) == 0 && bproc_nodepwroff_async(0) == 0);
    FAILS(bproc_nodereboot(BPROC_NODE_MASTER), EINVAL);
    CHECK(bproc_nodechroot(0, "/nfs") == 0);
    memset(&in, 0, sizeof(in));
    in.sin_family = AF_INET;
    in.sin_port = htons(2223);
    in.sin_addr.s_addr = inet_addr("10.0.0.1");
    CHECK(bproc_nodereconnect(0, (struct sockaddr *)&in, sizeof(in), NULL, 0) == 0);
    CHECK(bproc_libclear() == 0 && bproc_libadd("/lib/a") == 0);
    FAILS(bproc_libdel("/lib/none"), ENOENT);
    CHECK(bproc_liblist(&list) == 15 && !memcmp(list, "/lib/a\0/lib/b\0", 15));
    free(list);

    int fd = bproc_notifier();
    struct pollfd poller = {fd, POLLIN, 0};
    CHECK(fd >= 0 && poll(&poller, 1, 0) == 0);
    CHECK(bproc_nodesetstatus(0, "change") == 0);
    CHECK(poll(&poller, 1, 20000) == 1 && bproc_nodelist_(&set, fd) == 3);
    CHECK(poll(&poller, 1, 0) == 0);
    CHECK(bproc_nodesetstatus(0, "change") == 0 && poll(&poller, 1, 20000) == 1);
    close(fd);
    bproc_nodeset_free(&set);
}

static void map(void)
{
    int map[3] = {5, 1, 9};
    struct bproc_node_set_t set = BPROC_EMPTY_NODESET;
    CHECK(bproc_set_node_map(map, 3) == 0 && bproc_numnodes() == 3);
    CHECK(!bproc_nodeup(0) && bproc_nodeup(1) && !bproc_nodeup(2));
    CHECK(bproc_nodelist(&set) == 2 && set.node[0].node == 0 && !strcmp(set.node[0].status, "down"));
    CHECK(bproc_pidnode(42) == 1 && bproc_pidnode(1343000) == BPROC_NODE_NONE);
    FAILS(bproc_chmod(0, 0), EPERM);
    FAILS(bproc_chmod(3, 0), BE_INVALIDNODE);
    CHECK(bproc_currnode() == BPROC_NODE_MASTER);
    bproc_clear_node_map();
    bproc_nodeset_free(&set);
    /* $HOME/.bprocnodes says 1 0. */
    bproc_init();
    CHECK(bproc_numnodes() == 2 && bproc_pidnode(42) == 0);
    bproc_clear_node_map();
}

static volatile sig_atomic_t ended;

static void on_end(int signal)
{
    (void)signal;
    ended++;
}

static void creation(void)
{
    char *envp[] = {(char *)"A=1", (char *)"BPROC_RANK=XXXXXXX", NULL};
    char *argv[] = {(char *)"sh", (char *)"-c", (char *)"exit 1${BPROC_RANK#000000}", NULL};
    int nodes[5] = {0, 5, 1, 0, 2}, pids[5], status;
    sigset_t before, after;

    IN_CHILD(status, bproc_rexec(1, "/bin/sh", argv, envp));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) != 99);
    FAILS(bproc_rexec(5, "/bin/sh", argv, envp), BE_NODEDOWN);
    FAILS(bproc_rexec(2, "/bin/sh", argv, envp), BE_INVALIDNODE);
    FAILS(bproc_rexec(0, "/no/such", argv, envp), ENOENT);
    FAILS(bproc_execmove(5, "/bin/sh", argv, envp), BE_NODEDOWN);
    sigprocmask(SIG_BLOCK, NULL, &before);

    signal(SIGCHLD, on_end);
    CHECK(bproc_vexecmove(5, nodes, pids, "/bin/sh", argv, envp) == 5);
    CHECK(pids[0] > 0 && pids[1] == -BE_NODEDOWN && pids[2] > 0 && pids[3] > 0 && pids[4] == -BE_INVALIDNODE);
    for (int i = 0; i < 4; i++) {
        if (pids[i] > 0) {
            CHECK(waitpid(pids[i], &status, 0) == pids[i]);
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 10 + i);
        }
    }
    CHECK(waitpid(-1, &status, __WALL) == -1 && errno == ECHILD);
    /* Of those that failed nobody hears. */
    CHECK(ended >= 1 && ended <= 3);
    ended = 0;
    nodes[0] = 5;
    CHECK(bproc_vexecmove(2, nodes, pids, "/bin/sh", argv, envp) == 2);
    CHECK(pids[0] == -BE_NODEDOWN && pids[1] == -BE_NODEDOWN && ended == 0);
    sigprocmask(SIG_BLOCK, NULL, &after);
    CHECK(!memcmp(&before, &after, 8));
}

static void sockets(void)
{
    char *envp[] = {NULL}, *argv[] = {(char *)"true", NULL};
    struct sockaddr_in in;
    socklen_t size = sizeof(in);
    int listener = socket(AF_INET, SOCK_STREAM, 0), node = 1, pid, info[2], status;
    struct bproc_io_t io;

    memset(&in, 0, sizeof(in));
    in.sin_family = AF_INET;
    in.sin_addr.s_addr = inet_addr("127.0.0.1");
    CHECK(bind(listener, (struct sockaddr *)&in, size) == 0 && listen(listener, 4) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&in, &size) == 0);
    in.sin_addr.s_addr = 0;
    memset(&io, 0, sizeof(io));
    io.fd = 1;
    io.type = BPROC_IO_SOCKET;
    io.flags = BPROC_IO_SEND_INFO;
    memcpy(&io.d.addr, &in, sizeof(in));
    CHECK(bproc_vexecmove_io(1, &node, &pid, &io, 1, "/bin/true", argv, envp) == 1 && pid > 0);
    int conn = accept(listener, NULL, NULL);
    CHECK(conn >= 0 && recv(conn, info, sizeof(info), MSG_WAITALL) == sizeof(info));
    CHECK(info[0] == pid && info[1] == 1);
    /* The stand-in writes one byte into what it got. */
    CHECK(recv(conn, info, 1, MSG_WAITALL) == 1 && *(char *)info == '!');
    close(conn);
    close(listener);
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(bproc_vexecmove_io(1, &node, &pid, &io, 1, "/bin/true", argv, envp) == 1 && pid == -ECONNREFUSED);
}

int main(void)
{
    begin();
    questions();
    changes();
    map();
    creation();
    sockets();
    return 0;
}
