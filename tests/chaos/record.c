/* Preloaded into a process, writes down in order what it asks of the files of one folder: every write, every sync,
 * every change of names. From that record any moment's disk after a power cut can be made (disk.py).
 *
 * RECORD_FOLDER is the folder (its real path), RECORD_LOG the file that is appended to, one whole record a write(2):
 *   struct head, the path (empty: the folder itself), the bytes.
 * Shared memory maps are not seen; SQLite's -shm file is one, and is worth nothing after a power cut.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

struct head {
    char kind; /* C created, W written, T length set, S synced, U unlinked, R renamed, L linked (bytes: the new path) */
    char zero[3];
    uint32_t path_bytes;
    uint64_t offset;
    uint64_t bytes;
};

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WHERE_MAX 4096

/* The path below the folder, or NULL. */
static const char *inside(const char *path) {
    const char *folder = getenv("RECORD_FOLDER");
    size_t length;
    if (!folder || strncmp(path, folder, length = strlen(folder)) != 0) return NULL;
    if (path[length] == 0) return path + length;
    return path[length] == '/' && !strstr(path, " (deleted)") ? path + length + 1 : NULL;
}

static const char *of_descriptor(int descriptor, char where[WHERE_MAX]) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, where, WHERE_MAX - 1);
    if (length < 0) return NULL;
    where[length] = 0;
    return inside(where);
}

static const char *of_path(const char *path, char where[WHERE_MAX]) {
    if (path[0] == '/') return inside(strncpy(where, path, WHERE_MAX - 1));
    if (!getcwd(where, WHERE_MAX / 2)) return NULL;
    strcat(where, "/");
    return inside(strncat(where, path, WHERE_MAX / 2 - 2));
}

static void record(char kind, const char *path, uint64_t offset, const void *bytes, uint64_t length) {
    static int log = -1;
    int error = errno;
    if (log < 0 && (log = REAL(open)(getenv("RECORD_LOG"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600)) < 0) abort();
    struct head head = {kind, {0}, strlen(path), offset, length};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)path, head.path_bytes}, {(void *)bytes, bytes ? length : 0}};
    ssize_t whole = sizeof head + head.path_bytes + parts[2].iov_len;
    if (REAL(writev)(log, parts, 3) != whole) abort(); /* a record with a hole proves nothing */
    errno = error;
}

static void record_descriptor(char kind, int descriptor, uint64_t offset, const void *bytes, uint64_t length) {
    char where[WHERE_MAX];
    const char *path = of_descriptor(descriptor, where);
    if (path) record(kind, path, offset, bytes, length);
}

static int opened(const char *path, int flags, int descriptor, int existed) {
    char where[WHERE_MAX] = {0};
    const char *below = descriptor < 0 ? NULL : of_path(path, where);
    if (below && (flags & O_CREAT) && !existed) record('C', below, 0, NULL, 0);
    if (below && (flags & O_TRUNC) && existed) record('T', below, 0, NULL, 0);
    return descriptor;
}

#define OPENS(name)                                                                                                    \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;                                      \
        va_end(more);                                                                                                  \
        int existed = !(flags & O_CREAT) || access(path, F_OK) == 0;                                                   \
        return opened(path, flags, REAL(name)(path, flags, mode), existed);                                            \
    }
#define OPENS_AT(name)                                                                                                 \
    int name(int folder, const char *path, int flags, ...) {                                                           \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;                                      \
        va_end(more);                                                                                                  \
        int existed = !(flags & O_CREAT) || faccessat(folder, path, F_OK, 0) == 0;                                     \
        int descriptor = REAL(name)(folder, path, flags, mode);                                                        \
        return folder == AT_FDCWD || path[0] == '/' ? opened(path, flags, descriptor, existed) : descriptor;           \
    }
OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)

#define WRITES_AT(name, offset_type)                                                                                   \
    ssize_t name(int descriptor, const void *bytes, size_t length, offset_type offset) {                               \
        ssize_t written = REAL(name)(descriptor, bytes, length, offset);                                               \
        if (written > 0) record_descriptor('W', descriptor, offset, bytes, written);                                   \
        return written;                                                                                                \
    }
WRITES_AT(pwrite, off_t)
WRITES_AT(pwrite64, off64_t)

ssize_t write(int descriptor, const void *bytes, size_t length) {
    ssize_t written = REAL(write)(descriptor, bytes, length);
    if (written > 0 && lseek(descriptor, 0, SEEK_CUR) >= 0)
        record_descriptor('W', descriptor, lseek(descriptor, 0, SEEK_CUR) - written, bytes, written);
    return written;
}

#define SETS_LENGTH(name, length_type)                                                                                 \
    int name(int descriptor, length_type length) {                                                                     \
        int result = REAL(name)(descriptor, length);                                                                   \
        if (result == 0) record_descriptor('T', descriptor, length, NULL, 0);                                          \
        return result;                                                                                                 \
    }
SETS_LENGTH(ftruncate, off_t)
SETS_LENGTH(ftruncate64, off64_t)

#define SYNCS(name)                                                                                                    \
    int name(int descriptor) {                                                                                         \
        int result = REAL(name)(descriptor);                                                                           \
        if (result == 0) record_descriptor('S', descriptor, 0, NULL, 0);                                               \
        return result;                                                                                                 \
    }
SYNCS(fsync)
SYNCS(fdatasync)

int unlink(const char *path) {
    char where[WHERE_MAX] = {0};
    const char *below = of_path(path, where);
    int result = REAL(unlink)(path);
    if (result == 0 && below) record('U', below, 0, NULL, 0);
    return result;
}

#define NAMES(name, kind)                                                                                              \
    int name(const char *from, const char *to) {                                                                       \
        char where_from[WHERE_MAX] = {0}, where_to[WHERE_MAX] = {0};                                                   \
        const char *below_from = of_path(from, where_from), *below_to = of_path(to, where_to);                         \
        int result = REAL(name)(from, to);                                                                             \
        if (result == 0 && below_from && below_to) record(kind, below_from, 0, below_to, strlen(below_to));            \
        return result;                                                                                                 \
    }
NAMES(rename, 'R')
NAMES(link, 'L')

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) { /* Python 3.14's */
    if (from_folder == AT_FDCWD && to_folder == AT_FDCWD) return link(from, to);
    return REAL(linkat)(from_folder, from, to_folder, to, flags);
}
