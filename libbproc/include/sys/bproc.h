/* Processes on the nodes of a machine.
 *
 * One header for both generations of programs: those written for BProc 0.x and for BProc 4.0. Where the two disagree
 * (bproc_move, bproc_rfork, bproc_nodeaddr), the form of the call decides. C11 or any GNU C, C++.
 *
 * Calls return -1 and set errno on failure unless they say otherwise. errno may be one of the BE_ numbers; see
 * bproc_strerror. ENOSYS: no agent, or the agent does not know how.
 */
#ifndef SYS_BPROC_H
#define SYS_BPROC_H

#include <sys/socket.h>
#include <sys/types.h>
#include <sys/bproc_common.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A set of nodes; memory from malloc. */
struct bproc_node_set_t {
    int size;
    int alloc;
    struct bproc_node_info_t *node;
};
#define BPROC_EMPTY_NODESET {0, 0, 0}
/* Node number i of a set, as a pointer. */
#define bproc_node_set_node(set, i) (&((set)->node[(i)]))

/* What a descriptor of a new process is connected to. */
struct bproc_io_t {
    int fd;
    short type;
    short flags;
    union {
        struct sockaddr addr;
        struct {
            int flags;
            int mode;
            long offset;
            char name[256];
        } file;
        struct {
            void *base;
            long size;
        } mem;
    } d;
};

/* ---- Start, and the node map of 0.x ---- */

/* Reads $HOME/.bprocnodes. Nothing else needs it. */
void bproc_init(void);
/* Node numbers 0 to numnodes-1 mean map[0] to map[numnodes-1] from now on, in all calls. */
int bproc_set_node_map(const int *map, int numnodes);
void bproc_clear_node_map(void);

/* ---- Nodes ---- */

/* Number of nodes, the master not counted. */
int bproc_numnodes(void);
/* 1 when the node is up, else 0. */
int bproc_nodeup(int node);
/* Node that the caller is on. */
int bproc_currnode(void);
/* State as text; its length. ERANGE when it does not fit. */
int bproc_nodestatus(int node, char *status, int len);
int bproc_nodeaddr(int node, struct sockaddr *addr, int *size);
int bproc_masteraddr(struct sockaddr *addr, int *size);
/* Both give BPROC_NODE_NONE when there is no such node. */
int bproc_nodenumber(const struct sockaddr *addr, int size);
int bproc_getnodebyname(const char *name);
int bproc_nodeinfo(int node, struct bproc_node_info_t *info);
/* All nodes, in the place of what is in the set; how many. */
int bproc_nodelist(struct bproc_node_set_t *set);
/* The same; fd is a notifier, and polls readable again at the next change. */
int bproc_nodelist_(struct bproc_node_set_t *set, int fd);
/* Length of the value. With size 0 only that. */
int bproc_getnodeattr(int node, const char *name, void *value, int size);
int bproc_setnodeattr(int node, const char *name, const void *value, int size);
int bproc_chmod(int node, int mode);
int bproc_chown(int node, int user);
int bproc_chgrp(int node, int group);
/* EACCES when the caller may not start processes on the node. */
int bproc_access(int node, int mode);
/* Processes on a node, or on any (BPROC_NODE_ANY); how many. To be freed by free(). */
int bproc_proclist(int node, struct bproc_proc_info_t **list);
/* Node of a process; BPROC_NODE_NONE when there is no such process. */
int bproc_pidnode(int pid);
/* A descriptor that polls readable when nodes have changed. bproc_nodelist_ takes the news; close() ends it. */
int bproc_notifier(void);

/* ---- Node sets ---- */

int bproc_nodeset_init(struct bproc_node_set_t *set, int size);
/* Room for at least that many nodes, rounded up to 128. */
int bproc_nodeset_grow(struct bproc_node_set_t *set, int size);
void bproc_nodeset_free(struct bproc_node_set_t *set);
int bproc_nodeset_add(struct bproc_node_set_t *set, const struct bproc_node_info_t *node);
int bproc_nodeset_append(struct bproc_node_set_t *set, const struct bproc_node_set_t *more);
/* Those nodes of `from` (of all) that a text like "0-3,7,allup" names. EINVAL: it is no such text. */
int bproc_nodefilter(struct bproc_node_set_t *out, const struct bproc_node_set_t *from, const char *filter);
int bproc_nodespec(struct bproc_node_set_t *out, const char *spec);
/* Leaves those that are up and that the caller may use; *size becomes their number. */
int bproc_nodefilteraccessible(struct bproc_node_info_t *list, int *size);

/* ---- Processes on nodes ---- */

/* Replace the caller; do not return on success. Input comes from /dev/null, output goes where the caller's goes. With
 * an io list exactly the descriptors in it are set up. rexec takes the program from the node; execmove's travels from the
 * master. From a node both move the caller, and execute there: what fails then is its exit status. */
int bproc_rexec(int node, const char *cmd, char *const argv[], char *const envp[]);
int bproc_rexec_io(int node, struct bproc_io_t *io, int iolen, const char *cmd, char *const argv[],
                   char *const envp[]);
int bproc_execmove(int node, const char *cmd, char *const argv[], char *const envp[]);
int bproc_execmove_io(int node, struct bproc_io_t *io, int iolen, const char *cmd, char *const argv[],
                      char *const envp[]);
/* One child on each of n nodes; n. pids[i]: its pid, or what failed as a negative number. BPROC_RANK=XXXXXXX in the
 * environment becomes the child's index. */
int bproc_vexecmove(int n, const int *nodes, int *pids, const char *cmd, char *const argv[], char *const envp[]);
int bproc_vexecmove_io(int n, const int *nodes, int *pids, struct bproc_io_t *io, int iolen, const char *cmd,
                       char *const argv[], char *const envp[]);
/* exec with the master's files, where the caller is. On the master: execve. */
int bproc_execve(const char *cmd, char *const argv[], char *const envp[]);

/* The caller goes on on a node, or a child of its own does. bproc_move: 0 where it has come to; -1: it is where it was. Open
 * files do not go along, but for output; input comes from /dev/null. With an io list exactly the descriptors in it are
 * open afterwards. To the node where one is: bproc_move does nothing, bproc_rfork is fork, with the list. bproc_rfork: the child's pid, 0 in the
 * child; when it fails there is no child. bproc_vrfork: n for the parent, the rank (0 to n-1) for the children; pids[i] as
 * for bproc_vexecmove. */
int bproc_move(int node);
int _bproc_move(int node, int flags);
int bproc_move_io(int node, struct bproc_io_t *io, int iolen);
int _bproc_move_io(int node, struct bproc_io_t *io, int iolen, int flags);
int bproc_rfork(int node);
int _bproc_rfork(int node, int flags);
int bproc_rfork_io(int node, struct bproc_io_t *io, int iolen);
int _bproc_rfork_io(int node, struct bproc_io_t *io, int iolen, int flags);
int bproc_vrfork(int n, const int *nodes, int *pids);
int _bproc_vrfork(int n, const int *nodes, int *pids, int flags);
int bproc_vrfork_io(int n, const int *nodes, int *pids, struct bproc_io_t *io, int iolen);
int _bproc_vrfork_io(int n, const int *nodes, int *pids, struct bproc_io_t *io, int iolen, int flags);

/* ---- Administration (root) ---- */

int bproc_nodesetstatus(int node, const char *status);
/* These need an agent that knows how, else ENOSYS. */
int bproc_nodechroot(int node, const char *path);
int bproc_nodereboot(int node);
int bproc_nodehalt(int node);
int bproc_nodepwroff(int node);
int bproc_nodereboot_async(int node);
int bproc_nodehalt_async(int node);
int bproc_nodepwroff_async(int node);
int bproc_nodereconnect(int node, const struct sockaddr *remote, int remote_size, const struct sockaddr *local,
                        int local_size);

/* Words for errno or a BE_ number, of either sign. */
const char *bproc_strerror(int number);
int bproc_version(struct bproc_version_t *version);

/* ---- VMADump ---- */

/* Writes the calling process to fd: number of bytes; 0 in the process when it is undumped. One thread only. */
int bproc_dump(int fd, int flags);
/* Becomes the process that is in fd; returns only on failure, and then nothing has changed. */
int bproc_undump(int fd);
int bproc_vmadump(int fd, int flags);
int bproc_vmaundump(int fd);
/* The program as it begins, as an image; the caller ends. Returns only on failure. */
int bproc_execdump(int fd, int flags, const char *cmd, char *const argv[], char *const envp[]);
/* The library list. These need an agent that keeps one, else ENOSYS. */
int bproc_libclear(void);
int bproc_libadd(const char *path);
int bproc_libdel(const char *path);
/* NUL-terminated paths and a NUL more; its length. To be freed by free(). */
int bproc_liblist(char **list);

/* Plain form of the 0.x call bproc_nodeaddr(node, addr, int size). */
int bproc_nodeaddr_sized(int node, struct sockaddr *addr, int size);

#ifdef __cplusplus
}

/* The forms of 0.x, as overloads. */
inline int bproc_move(int node, int flags) { return _bproc_move(node, flags); }
inline int bproc_rfork(int node, int flags) { return _bproc_rfork(node, flags); }
inline int bproc_nodeaddr(int node, struct sockaddr *addr, int size)
{
    return bproc_nodeaddr_sized(node, addr, size);
}
#else
/* The forms of 0.x, by number of arguments and by type. The functions of these names are those of 4.0. */
#define BPROC_SECOND_OR_THIRD_(first, second, third, ...) third
#define bproc_move(...) BPROC_SECOND_OR_THIRD_(__VA_ARGS__, _bproc_move, bproc_move, 0)(__VA_ARGS__)
#define bproc_rfork(...) BPROC_SECOND_OR_THIRD_(__VA_ARGS__, _bproc_rfork, bproc_rfork, 0)(__VA_ARGS__)
#if defined(__GNUC__) || (defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L)
#define bproc_nodeaddr(node, addr, size)                                                                             \
    _Generic((size), int *: bproc_nodeaddr, unsigned *: bproc_nodeaddr, void *: bproc_nodeaddr,                      \
             default: bproc_nodeaddr_sized)(node, addr, size)
#endif
#endif

/* The layout that the library has. */
#if defined(__x86_64__) && defined(__LP64__)
#if defined(__cplusplus) && __cplusplus >= 201103L
#define BPROC_LAYOUT_(what) static_assert(what, #what)
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L && !defined(__cplusplus)
#define BPROC_LAYOUT_(what) _Static_assert(what, #what)
#endif
#endif
#ifdef BPROC_LAYOUT_
BPROC_LAYOUT_(sizeof(struct bproc_version_t) == 32);
BPROC_LAYOUT_(sizeof(struct bproc_node_info_t) == 48);
BPROC_LAYOUT_(sizeof(struct bproc_node_set_t) == 16);
BPROC_LAYOUT_(sizeof(struct bproc_proc_info_t) == 8);
BPROC_LAYOUT_(sizeof(struct bproc_io_t) == 280);
#undef BPROC_LAYOUT_
#endif

#endif
