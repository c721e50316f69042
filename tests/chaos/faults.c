/* Preloaded into a process, lets its disk fail: some syncs that are counted to, or every write from now on.
 *
 * FAULTS_CONTROL is a file of six 64-bit numbers, shared with the trial, which sets and reads them at any time:
 *   how many syncs there were · which one is the first to fail · how many fail · with what error · the error of every
 *   write (0: none) · how many calls have failed.
 * Only files whose path, with a `$` at its end, holds FAULTS_PATH are meant.
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
#include <unistd.h>

struct control {
    int64_t syncs, failing_sync, failing_syncs, sync_error, write_error, failed;
};

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static struct control *control(void) {
    static struct control *mapped;
    if (!mapped) {
        int descriptor = open(getenv("FAULTS_CONTROL"), O_RDWR | O_CLOEXEC);
        mapped = mmap(NULL, sizeof *mapped, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
        if (descriptor < 0 || mapped == MAP_FAILED) abort();
        close(descriptor);
    }
    return mapped;
}

static int is_meant(int descriptor) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 2);
    if (length < 0) return 0;
    strcpy(path + length, "$");
    return strstr(path, getenv("FAULTS_PATH")) != NULL;
}

static int failed(int64_t error) {
    __atomic_add_fetch(&control()->failed, 1, __ATOMIC_SEQ_CST);
    errno = (int)error;
    return -1;
}

static int64_t sync_error(int descriptor) {
    if (!is_meant(descriptor)) return 0;
    struct control *now = control();
    int64_t number = __atomic_add_fetch(&now->syncs, 1, __ATOMIC_SEQ_CST) - now->failing_sync;
    return number >= 0 && number < now->failing_syncs ? now->sync_error : 0;
}

static int64_t write_error(int descriptor) {
    int64_t error = control()->write_error;
    return error && is_meant(descriptor) ? error : 0;
}

#define SYNCS(name)                                                                                                    \
    int name(int descriptor) {                                                                                         \
        int64_t error = sync_error(descriptor);                                                                        \
        return error ? failed(error) : REAL(name)(descriptor);                                                         \
    }
SYNCS(fsync)
SYNCS(fdatasync)

#define WRITES_AT(name, offset_type)                                                                                   \
    ssize_t name(int descriptor, const void *bytes, size_t length, offset_type offset) {                               \
        int64_t error = write_error(descriptor);                                                                       \
        return error ? failed(error) : REAL(name)(descriptor, bytes, length, offset);                                  \
    }
WRITES_AT(pwrite, off_t)
WRITES_AT(pwrite64, off64_t)

ssize_t write(int descriptor, const void *bytes, size_t length) {
    int64_t error = write_error(descriptor);
    return error ? failed(error) : REAL(write)(descriptor, bytes, length);
}
