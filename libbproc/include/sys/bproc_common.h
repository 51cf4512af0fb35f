/* Numbers and structures of BProc that are not calls. sys/bproc.h includes it. */
#ifndef SYS_BPROC_COMMON_H
#define SYS_BPROC_COMMON_H

#include <stdint.h>
#include <sys/socket.h>

#define BPROC_API_VERSION 4

/* Nodes that are no node's number. */
#define BPROC_NODE_MASTER (-1)
#define BPROC_NODE_SELF (-2)
#define BPROC_NODE_NONE (-3)
#define BPROC_NODE_ANY (-4)

#define BPROC_STATUS_NONE (-2)
/* Longest name of a state, without its NUL. */
#define BPROC_STATE_LEN 15
#define BPROC_X_OK 1

/* Which read-only mappings of files travel as data; writable memory always does. */
#define BPROC_DUMP_LIBS 1
#define BPROC_DUMP_EXEC 2
#define BPROC_DUMP_OTHER 4
#define BPROC_DUMP_ALL 7
#define VMAD_DUMP_LIBS BPROC_DUMP_LIBS
#define VMAD_DUMP_EXEC BPROC_DUMP_EXEC
#define VMAD_DUMP_OTHER BPROC_DUMP_OTHER
#define VMAD_DUMP_ALL BPROC_DUMP_ALL

/* struct bproc_io_t: entries of a list, type, flags. */
#define BPROC_IO_MAX_LEN 16
#define BPROC_IO_FILE 0
#define BPROC_IO_SOCKET 1
#define BPROC_IO_MEMFILE 2
#define BPROC_IO_SEND_INFO 1
#define BPROC_IO_DELAY 2

/* Attributes of nodes. */
#define BPROC_XATTR_PREFIX "bproc."
#define BPROC_STATE_XATTR "bproc.state"
#define BPROC_ADDR_XATTR "bproc.addr"
#define BPROC_XATTR_MAX_NAME_SIZE 63
#define BPROC_XATTR_MAX_VALUE_SIZE 64
#define BPROC_XATTR_MAX 32

#define BPROC_ARCH_X86 1
#define BPROC_ARCH_ALPHA 2
#define BPROC_ARCH_PPC 3
#define BPROC_ARCH_X86_64 4
#define BPROC_ARCH_PPC64 5

/* Errors beside the system's. */
#define BE_BASE 300
#define BE_INVALIDNODE 300
#define BE_NODEDOWN 301
#define BE_SAMENODE 302
#define BE_SLAVEDIED 303
#define BE_INVALIDPROC 304

struct bproc_version_t {
    char bproc_magic[3];
    uint8_t arch;
    uint32_t magic;
    char version_string[24];
};

struct bproc_node_info_t {
    int node;
    char status[BPROC_STATE_LEN + 1];
    unsigned int mode;
    unsigned int user;
    unsigned int group;
    struct sockaddr addr;
};

struct bproc_proc_info_t {
    int pid;
    int node;
};

#endif
