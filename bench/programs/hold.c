/* Holds memory of which no page is like another, says so with a byte on standard output, and waits.
 *
 *   hold MIB
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    size_t words = (argc > 1 ? strtoull(argv[1], NULL, 10) : 0) << 17;
    uint64_t state = 88172645463325252ULL, *memory = NULL;
    int null = open("/dev/null", O_RDWR);
    if (words) {
        memory = mmap(NULL, words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            return 1;
    }
    for (size_t i = 0; i < words; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        memory[i] = state;
    }
    if (write(1, "r", 1) != 1 || dup2(null, 1) < 0)
        return 1;
    close(null);
    for (;;)
        pause();
}
