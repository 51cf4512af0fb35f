/* Numbers and places that programs were compiled with. */
#include "check.h"

#include <stddef.h>

int main(void)
{
    CHECK(sizeof(struct bproc_version_t) == 32 && offsetof(struct bproc_version_t, arch) == 3);
    CHECK(offsetof(struct bproc_version_t, magic) == 4 && offsetof(struct bproc_version_t, version_string) == 8);
    CHECK(sizeof(struct bproc_node_info_t) == 48 && offsetof(struct bproc_node_info_t, status) == 4);
    CHECK(offsetof(struct bproc_node_info_t, mode) == 20 && offsetof(struct bproc_node_info_t, user) == 24);
    CHECK(offsetof(struct bproc_node_info_t, group) == 28 && offsetof(struct bproc_node_info_t, addr) == 32);
    CHECK(sizeof(struct bproc_node_set_t) == 16 && offsetof(struct bproc_node_set_t, node) == 8);
    CHECK(sizeof(struct bproc_proc_info_t) == 8 && offsetof(struct bproc_proc_info_t, node) == 4);
    CHECK(sizeof(struct bproc_io_t) == 280 && offsetof(struct bproc_io_t, type) == 4);
    CHECK(offsetof(struct bproc_io_t, flags) == 6 && offsetof(struct bproc_io_t, d) == 8);
    CHECK(offsetof(struct bproc_io_t, d.file.offset) == 16 && offsetof(struct bproc_io_t, d.file.name) == 24);
    CHECK(offsetof(struct bproc_io_t, d.mem.size) == 16);

    CHECK(BPROC_DUMP_LIBS == 1 && BPROC_DUMP_EXEC == 2 && BPROC_DUMP_OTHER == 4 && BPROC_DUMP_ALL == 7);
    CHECK(VMAD_DUMP_LIBS == 1 && VMAD_DUMP_EXEC == 2 && VMAD_DUMP_OTHER == 4 && VMAD_DUMP_ALL == 7);
    CHECK(BPROC_NODE_MASTER == -1 && BPROC_NODE_SELF == -2 && BPROC_NODE_NONE == -3 && BPROC_NODE_ANY == -4);
    CHECK(BPROC_STATUS_NONE == -2 && BPROC_X_OK == 1 && BPROC_STATE_LEN == 15 && BPROC_API_VERSION == 4);
    CHECK(BPROC_IO_MAX_LEN == 16 && BPROC_IO_FILE == 0 && BPROC_IO_SOCKET == 1 && BPROC_IO_MEMFILE == 2);
    CHECK(BPROC_IO_SEND_INFO == 1 && BPROC_IO_DELAY == 2);
    CHECK(!strcmp(BPROC_XATTR_PREFIX, "bproc.") && !strcmp(BPROC_STATE_XATTR, "bproc.state"));
    CHECK(!strcmp(BPROC_ADDR_XATTR, "bproc.addr") && BPROC_XATTR_MAX == 32);
    CHECK(BPROC_XATTR_MAX_NAME_SIZE == 63 && BPROC_XATTR_MAX_VALUE_SIZE == 64);
    CHECK(BPROC_ARCH_X86 == 1 && BPROC_ARCH_ALPHA == 2 && BPROC_ARCH_PPC == 3);
    CHECK(BPROC_ARCH_X86_64 == 4 && BPROC_ARCH_PPC64 == 5);
    CHECK(BE_BASE == 300 && BE_INVALIDNODE == 300 && BE_NODEDOWN == 301 && BE_SAMENODE == 302);
    CHECK(BE_SLAVEDIED == 303 && BE_INVALIDPROC == 304);

    struct bproc_version_t version;
    CHECK(bproc_version(&version) == 0);
    CHECK(!memcmp(version.bproc_magic, "BPr", 3) && version.arch == BPROC_ARCH_X86_64);
    CHECK(!strncmp(version.version_string, "4.", 2) && memchr(version.version_string, 0, 24));
    FAILS(bproc_version(NULL), EFAULT);
    return 0;
}
