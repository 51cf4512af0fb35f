// Eight GiB of which a page here and there is used; holes stay holes.
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <signal.h>
#include <unistd.h>

#include "../../vmadump/tests/programs/told.h"

static const size_t SIZE = (size_t)8 << 30, STEP = (size_t)67 << 20;

static void fail(const char *what) {
    printf("fail %s errno %d\n", what, errno);
    fflush(stdout);
    _exit(1);
}

static long resident(void) {
    long size, pages;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%ld %ld", &size, &pages) != 2) fail("statm");
    fclose(f);
    return pages * 4;
}

int main(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    wait_to_be_told();
    char *all = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) fail("mmap");
    madvise(all, SIZE, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < SIZE; i += STEP) *(size_t *)(all + i) = ~i;
    for (int round = 0; !is_told(); round++) {
        printf("round %d\n", round);
        fflush(stdout);
        usleep(30000);
        for (size_t i = 0; i < SIZE; i += STEP)
            if (*(size_t *)(all + i) != ~i) fail("a page");
        if (resident() > 64 << 10) fail("holes were filled");
        if (all[SIZE - 1] || all[STEP / 2]) fail("a hole");
        madvise(all + SIZE - 4096, 4096, MADV_DONTNEED);
    }
    puts("done");
    fflush(stdout);
    return 42;
}
