/* What disks do to programs: errors, fulls, lies and waits, on the files below one folder.
 *
 * Preloaded into a node. HINDCAST_FAULT_DIR names the folder, HINDCAST_FAULT_FILE a file of 32-bit numbers that the
 * tests write while the node runs:
 *
 *   0  errno of syncs; 0: none                      4  syncs do nothing and say that they did
 *   1  errno of writes; 0: none                     5  writes take half of what they are given
 *   2  bits flipped in a million reads              6  (told) faults that were met
 *   3  milliseconds that a sync takes longer
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { SYNC_ERRNO, WRITE_ERRNO, READ_FLIPS, SYNC_DELAY_MS, SYNC_LIES, SHORT_WRITES, MET, NUMBERS };
enum { FDS_MAX = 65536 };

static volatile uint32_t *told;
static char folder[1024];
static size_t folder_len;
/* Of a descriptor: 0 not looked at yet, 1 not below the folder, 2 below it. */
static volatile unsigned char known[FDS_MAX];

__attribute__((constructor)) static void begin(void) {
    const char *dir = getenv("HINDCAST_FAULT_DIR"), *file = getenv("HINDCAST_FAULT_FILE");
    if (!dir || !file || strlen(dir) >= sizeof folder)
        return;
    int fd = open(file, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    void *map = mmap(NULL, NUMBERS * sizeof(uint32_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    strcpy(folder, dir);
    folder_len = strlen(dir);
    if (map != MAP_FAILED)
        told = map;
}

static int is_ours(int fd) {
    if (!told || fd < 0 || fd >= FDS_MAX)
        return 0;
    if (known[fd] == 0) {
        char link[64], path[1024];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t len = readlink(link, path, sizeof path);
        known[fd] = len > (ssize_t)folder_len && !memcmp(path, folder, folder_len) && path[folder_len] == '/' ? 2 : 1;
    }
    return known[fd] == 2;
}

static int fails(int number) {
    if (!told[number])
        return 0;
    __sync_fetch_and_add(&told[MET], 1);
    errno = (int)told[number];
    return 1;
}

static uint64_t draw(void) {
    static uint64_t state = 0x9e3779b97f4a7c15u;
    uint64_t z = __sync_add_and_fetch(&state, 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static size_t taken(size_t count) {
    if (!told[SHORT_WRITES] || count < 2)
        return count;
    __sync_fetch_and_add(&told[MET], 1);
    return count / 2;
}

static void flip(void *buf, ssize_t count) {
    if (count <= 0 || !told[READ_FLIPS] || draw() % 1000000 >= told[READ_FLIPS])
        return;
    __sync_fetch_and_add(&told[MET], 1);
    ((unsigned char *)buf)[draw() % (uint64_t)count] ^= (unsigned char)(1u << (draw() % 8));
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) \
    real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

int close(int fd) {
    REAL(close);
    if (fd >= 0 && fd < FDS_MAX)
        known[fd] = 0;
    return real(fd);
}

/* 1: the sync is to be done; else it has its result. */
static int sync_goes_on(int fd) {
    if (!is_ours(fd))
        return 1;
    if (told[SYNC_DELAY_MS]) {
        struct timespec wait = {told[SYNC_DELAY_MS] / 1000, (long)(told[SYNC_DELAY_MS] % 1000) * 1000000};
        __sync_fetch_and_add(&told[MET], 1);
        nanosleep(&wait, NULL);
    }
    if (fails(SYNC_ERRNO))
        return -1;
    if (told[SYNC_LIES]) {
        __sync_fetch_and_add(&told[MET], 1);
        return 0;
    }
    return 1;
}

#define SYNC(name) \
    int name(int fd) { \
        REAL(name); \
        int result = sync_goes_on(fd); \
        return result == 1 ? real(fd) : result; \
    }
SYNC(fsync)
SYNC(fdatasync)

/* After each of sled's writes. */
int sync_file_range(int fd, off64_t at, off64_t count, unsigned how) {
    REAL(sync_file_range);
    int result = sync_goes_on(fd);
    return result == 1 ? real(fd, at, count, how) : result;
}

ssize_t write(int fd, const void *buf, size_t count) {
    REAL(write);
    if (!is_ours(fd))
        return real(fd, buf, count);
    return fails(WRITE_ERRNO) ? -1 : real(fd, buf, taken(count));
}

ssize_t pwrite64(int fd, const void *buf, size_t count, off64_t at) {
    REAL(pwrite64);
    if (!is_ours(fd))
        return real(fd, buf, count, at);
    return fails(WRITE_ERRNO) ? -1 : real(fd, buf, taken(count), at);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    if (!is_ours(fd))
        return real(fd, parts, count);
    return fails(WRITE_ERRNO) ? -1 : real(fd, parts, count);
}

ssize_t read(int fd, void *buf, size_t count) {
    REAL(read);
    ssize_t got = real(fd, buf, count);
    if (is_ours(fd))
        flip(buf, got);
    return got;
}

ssize_t pread64(int fd, void *buf, size_t count, off64_t at) {
    REAL(pread64);
    ssize_t got = real(fd, buf, count, at);
    if (is_ours(fd))
        flip(buf, got);
    return got;
}
