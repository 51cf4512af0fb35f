// Runs a program on a node by the call that is named, with the descriptors that it has: CALL NODE PROGRAM ARGUMENT...
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/bproc.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    int node = atoi(argv[2]);
    char path[4096];
    snprintf(path, sizeof path, "/bin/%s", argv[3]);
    if (strcmp(argv[1], "execmove") == 0) bproc_execmove(node, path, argv + 3, environ);
    if (strcmp(argv[1], "rexec") == 0) bproc_rexec(node, path, argv + 3, environ);
    if (strcmp(argv[1], "move") == 0 && bproc_move(node) == 0) execv(path, argv + 3);
    perror(argv[1]);
    return 1;
}
