// clocks OFFSET: reads the clock all the time, for which some of its bodies show OFFSET seconds more than others. A reading that is
// neither ends it.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv) {
    long offset = argc > 1 ? atol(argv[1]) : 0;
    struct timespec first, t;
    clock_gettime(CLOCK_MONOTONIC, &first);
    for (int i = 0;; i++) {
        for (int j = 0; j < 20000; j++) {
            clock_gettime(CLOCK_MONOTONIC, &t);
            long later = t.tv_sec - first.tv_sec;
            if (labs(later) > 60 && labs(later - offset) > 60) {
                printf("%ld seconds later\n", later);
                return 1;
            }
        }
        printf("%d\n", i);
        fflush(stdout);
    }
}
