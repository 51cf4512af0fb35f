/* A program as it was written for BProc 0.x, where no agent runs: every call in its old form. */
#include "check.h"

#include <netinet/in.h>

int main(void)
{
    struct sockaddr_in addr;
    int map[2] = {1, 0};
    char *argv[] = {(char *)"true", NULL}, *envp[] = {NULL};
    char *cmd = argv[0];

    begin();
    bproc_init();
    FAILS(bproc_numnodes(), ENOSYS);
    CHECK(bproc_nodeup(0) == 0);
    FAILS(bproc_nodeaddr(0, (struct sockaddr *)&addr, sizeof(addr)), ENOSYS);
    FAILS(bproc_nodeaddr(0, (struct sockaddr *)&addr, 16), ENOSYS);
    CHECK(bproc_set_node_map(map, 2) == 0);
    CHECK(bproc_numnodes() == 2);
    FAILS(bproc_set_node_map(map, -1), EINVAL);
    FAILS(bproc_set_node_map(NULL, 1), EFAULT);
    FAILS(bproc_rexec(7, cmd, argv, envp), BE_INVALIDNODE);
    map[0] = -1;
    FAILS(bproc_set_node_map(map, 2), EINVAL);
    bproc_clear_node_map();
    FAILS(bproc_numnodes(), ENOSYS);
    FAILS(bproc_rexec(0, cmd, argv, envp), ENOSYS);
    FAILS(bproc_rexec(0, NULL, argv, envp), EFAULT);
    FAILS(bproc_execmove(0, cmd, argv, envp), ENOENT);
    FAILS(bproc_execmove(0, (char *)"/bin/true", argv, envp), ENOSYS);
    FAILS(bproc_execmove(0, (char *)"/etc/passwd", argv, envp), EACCES);
    FAILS(bproc_execmove(0, (char *)"/etc", argv, envp), EACCES);
    /* Absent in this version. */
    FAILS(bproc_move(0, VMAD_DUMP_ALL), ENOSYS);
    FAILS(bproc_move(0), ENOSYS);
    FAILS(bproc_rfork(0, VMAD_DUMP_LIBS | VMAD_DUMP_EXEC | VMAD_DUMP_OTHER), ENOSYS);
    FAILS(bproc_rfork(0), ENOSYS);
    FAILS(bproc_vmadump(-1, VMAD_DUMP_ALL), EBADF);
    FAILS(bproc_vmadump(2, 8), EINVAL);
    FAILS(bproc_vmaundump(-1), EBADF);
    return 0;
}
