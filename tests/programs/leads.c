// Writes LINES numbered lines to its standard output, in as many parts as there are places, each part where it has moved to; natively,
// with no places, all at once. Then ends with 9.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/bproc.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    int lines = atoi(argv[1]), parts = argc > 2 ? argc - 2 : 1, next = 0;
    for (int part = 0; part < parts; part++) {
        if (argc > 2) {
            int node = strcmp(argv[part + 2], "master") ? atoi(argv[part + 2]) : BPROC_NODE_MASTER;
            if (bproc_move(node)) {
                perror(argv[part + 2]);
                return 1;
            }
            char c;
            if (read(0, &c, 1) != 0) {
                fputs("its input is not /dev/null\n", stderr);
                return 1;
            }
        }
        for (; next < (long)lines * (part + 1) / parts; next++) {
            char line[32];
            int length = snprintf(line, sizeof line, "line %d\n", next);
            if (write(1, line, length) != length) {
                perror("write");
                return 1;
            }
        }
    }
    return 9;
}
