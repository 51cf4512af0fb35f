// Counts and sleeps.
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
    int upto = argc > 1 ? atoi(argv[1]) : 20;
    for (int i = 0; i < upto; i++) {
        printf("%d\n", i);
        fflush(stdout);
        usleep(10000);
    }
    return 7;
}
