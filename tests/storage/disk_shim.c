/* A disk that a test controls: preloaded into a process, it writes down everything that the process
 * does to files below a folder (DISK_ROOT), in order, and lets the n-th such call fail.
 *
 * DISK_LOG   where the record goes: events as "<op u8><u32 length><body>", little endian
 * disk_fail(nth, errno, how_many, kinds)   called by the process itself, by ctypes
 * disk_note(bytes, length)                 an event of the process's own: what it acknowledged
 *
 * A lock around each call and its record keeps the order of the record that of the disk.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 'o', CLOSE = 'c', WRITE = 'w', TRUNCATE = 't', SYNC = 's', MKDIR = 'm', RENAME = 'r',
       LINK = 'l', UNLINK = 'u', NOTE = 'n', UNKNOWN = '?' };
/* kinds of calls that may fail */
enum { FAIL_WRITE = 1, FAIL_SYNC = 2, FAIL_NAMES = 4 };
#define MAX_FDS 4096

static pthread_mutex_t mutex = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static char root[PATH_MAX];
static size_t root_length;
static int log_fd = -1;
static unsigned char tracked[MAX_FDS];
static long calls, fail_from, fail_count;
static int fail_errno, fail_kinds, failed;

#define REAL(name) ({ static __typeof__(&name) real_; \
    if (!real_) { real_ = (__typeof__(&name))dlsym(RTLD_NEXT, #name); } \
    real_; })

__attribute__((constructor)) static void start(void) {
    const char *wanted = getenv("DISK_ROOT"), *log = getenv("DISK_LOG");
    if (!wanted) return;
    snprintf(root, sizeof root, "%s", wanted);
    root_length = strlen(root);
    if (log) log_fd = REAL(open)(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void put(int op, const void *a, size_t a_size, const void *b, size_t b_size) {
    if (log_fd < 0) return;
    unsigned char head[5] = { (unsigned char)op };
    uint32_t length = (uint32_t)(a_size + b_size);
    memcpy(head + 1, &length, 4);
    struct iovec parts[3] = { { head, 5 }, { (void *)a, a_size }, { (void *)b, b_size } };
    if (REAL(writev)(log_fd, parts, 3) != (ssize_t)(5 + length)) abort();
}

static int is_below(const char *path) {
    return root_length && !strncmp(path, root, root_length)
        && (path[root_length] == '/' || !path[root_length]);
}

/* The absolute path, or 0 if it is not below the root. */
static int resolve(int folder, const char *path, char *out) {
    if (path[0] == '/') snprintf(out, PATH_MAX, "%s", path);
    else {
        char base[PATH_MAX], link[64];
        if (folder == AT_FDCWD) { if (!getcwd(base, sizeof base)) return 0; }
        else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            ssize_t size = readlink(link, base, sizeof base - 1);
            if (size < 0) return 0;
            base[size] = 0;
        }
        if (snprintf(out, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
    }
    return is_below(out);
}

static int is_tracked(int fd) { return fd >= 0 && fd < MAX_FDS && tracked[fd]; }

/* Counts a call that matters, and says whether it has to fail. */
static int must_fail(int kind) {
    if (!(fail_kinds & kind)) return 0;
    calls++;
    if (!fail_from || calls < fail_from || calls >= fail_from + fail_count) return 0;
    failed++;
    errno = fail_errno;
    return 1;
}

/* ------------------------------------------------------------------ what the process calls */

void disk_fail(long nth, int error, long how_many, int kinds) {
    pthread_mutex_lock(&mutex);
    calls = 0; failed = 0; fail_from = nth; fail_errno = error; fail_count = how_many;
    fail_kinds = kinds;
    pthread_mutex_unlock(&mutex);
}
int disk_failed(void) { return failed; }
void disk_note(const char *data, long length) {
    pthread_mutex_lock(&mutex);
    put(NOTE, data, (size_t)length, 0, 0);
    pthread_mutex_unlock(&mutex);
}

/* ------------------------------------------------------------------ files */

typedef struct { int32_t fd; uint8_t made, cut; } __attribute__((packed)) Opened;

static int open_any(int folder, const char *path, int flags, mode_t mode) {
    char full[PATH_MAX];
    if (!resolve(folder, path, full)) return REAL(openat)(folder, path, flags, mode);
    pthread_mutex_lock(&mutex);
    int existed = REAL(faccessat)(folder, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
    int fd = -1;
    if ((flags & O_CREAT) && !existed && must_fail(FAIL_NAMES)) fd = -1;
    else fd = REAL(openat)(folder, path, flags, mode);
    if (fd >= 0 && fd < MAX_FDS) {
        tracked[fd] = 1;
        Opened opened = { fd, !existed, (flags & O_TRUNC) && existed };
        put(OPEN, &opened, sizeof opened, full, strlen(full));
    } else if (fd >= MAX_FDS) abort();
    int saved = errno;
    pthread_mutex_unlock(&mutex);
    errno = saved;
    return fd;
}

#define MODE(flags) mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); \
        mode = va_arg(rest, mode_t); va_end(rest); }

int open(const char *path, int flags, ...) { MODE(flags) return open_any(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_any(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags) return open_any(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags) return open_any(folder, path, flags, mode); }

int close(int fd) {
    pthread_mutex_lock(&mutex);
    int was = is_tracked(fd);
    if (was) { int32_t number = fd; tracked[fd] = 0; put(CLOSE, &number, 4, 0, 0); }
    int result = REAL(close)(fd), saved = errno;
    pthread_mutex_unlock(&mutex);
    errno = saved;
    return result;
}

typedef struct { int32_t fd; int64_t offset; } __attribute__((packed)) Place;

static ssize_t write_any(int fd, const void *data, size_t size, off_t offset, int has_offset) {
    pthread_mutex_lock(&mutex);
    ssize_t count;
    if (must_fail(FAIL_WRITE)) count = -1;
    else {
        count = has_offset ? REAL(pwrite)(fd, data, size, offset) : REAL(write)(fd, data, size);
        if (count > 0) {
            Place place = { fd, has_offset ? offset : lseek(fd, 0, SEEK_CUR) - count };
            put(WRITE, &place, sizeof place, data, (size_t)count);
        }
    }
    int saved = errno;
    pthread_mutex_unlock(&mutex);
    errno = saved;
    return count;
}

ssize_t write(int fd, const void *data, size_t size) {
    return is_tracked(fd) ? write_any(fd, data, size, 0, 0) : REAL(write)(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    return is_tracked(fd) ? write_any(fd, data, size, offset, 1) : REAL(pwrite)(fd, data, size, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) { return pwrite(fd, data, size, offset); }

static int truncate_any(int fd, off_t size) {
    pthread_mutex_lock(&mutex);
    int result = must_fail(FAIL_WRITE) ? -1 : REAL(ftruncate)(fd, size);
    if (!result) { Place place = { fd, size }; put(TRUNCATE, &place, sizeof place, 0, 0); }
    int saved = errno;
    pthread_mutex_unlock(&mutex);
    errno = saved;
    return result;
}
int ftruncate(int fd, off_t size) { return is_tracked(fd) ? truncate_any(fd, size) : REAL(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

static int sync_any(int fd, int only_data) {
    pthread_mutex_lock(&mutex);
    int result = must_fail(FAIL_SYNC) ? -1 : only_data ? REAL(fdatasync)(fd) : REAL(fsync)(fd);
    if (!result) { int32_t number = fd; put(SYNC, &number, 4, 0, 0); }
    int saved = errno;
    pthread_mutex_unlock(&mutex);
    errno = saved;
    return result;
}
int fsync(int fd) { return is_tracked(fd) ? sync_any(fd, 0) : REAL(fsync)(fd); }
int fdatasync(int fd) { return is_tracked(fd) ? sync_any(fd, 1) : REAL(fdatasync)(fd); }

/* Not written down by us: the record says so, and whoever replays it stops. */
#define UNRECORDED(call, fd) \
    { if (is_tracked(fd)) put(UNKNOWN, #call, strlen(#call), 0, 0); }
ssize_t writev(int fd, const struct iovec *parts, int count) { UNRECORDED(writev, fd) return REAL(writev)(fd, parts, count); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) { UNRECORDED(pwritev, fd) return REAL(pwritev)(fd, parts, count, offset); }
ssize_t sendfile(int to, int from, off_t *offset, size_t count);
ssize_t sendfile(int to, int from, off_t *offset, size_t count) { UNRECORDED(sendfile, to) return REAL(sendfile)(to, from, offset, count); }
ssize_t sendfile64(int to, int from, off64_t *offset, size_t count);
ssize_t sendfile64(int to, int from, off64_t *offset, size_t count) { return sendfile(to, from, offset, count); }
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags) { UNRECORDED(copy_file_range, to) return REAL(copy_file_range)(from, a, to, b, size, flags); }
int posix_fallocate(int fd, off_t offset, off_t size) { UNRECORDED(posix_fallocate, fd) return REAL(posix_fallocate)(fd, offset, size); }
int posix_fallocate64(int fd, off64_t offset, off64_t size) { UNRECORDED(posix_fallocate, fd) return REAL(posix_fallocate)(fd, offset, size); }

/* ------------------------------------------------------------------ names */

#define NAMES(op, call, a, b, b_size) \
    pthread_mutex_lock(&mutex); \
    int result = must_fail(FAIL_NAMES) ? -1 : (call); \
    if (!result) put(op, a, strlen(a) + 1, b, b_size); \
    int saved = errno; \
    pthread_mutex_unlock(&mutex); \
    errno = saved; \
    return result;

int mkdirat(int folder, const char *path, mode_t mode) {
    char full[PATH_MAX];
    if (!resolve(folder, path, full)) return REAL(mkdirat)(folder, path, mode);
    NAMES(MKDIR, REAL(mkdirat)(folder, path, mode), full, "", 0)
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int unlinkat(int folder, const char *path, int flags) {
    char full[PATH_MAX];
    if (!resolve(folder, path, full)) return REAL(unlinkat)(folder, path, flags);
    NAMES(UNLINK, REAL(unlinkat)(folder, path, flags), full, "", 0)
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path) { int result = unlink(path); return result && errno == EISDIR ? rmdir(path) : result; }

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    char a[PATH_MAX], b[PATH_MAX];
    int a_below = resolve(from_folder, from, a), b_below = resolve(to_folder, to, b);
    if (!a_below && !b_below) return REAL(renameat)(from_folder, from, to_folder, to);
    NAMES(RENAME, REAL(renameat)(from_folder, from, to_folder, to), a, b, strlen(b))
}
int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    char a[PATH_MAX], b[PATH_MAX];
    int a_below = resolve(from_folder, from, a), b_below = resolve(to_folder, to, b);
    if (!a_below && !b_below) return REAL(linkat)(from_folder, from, to_folder, to, flags);
    NAMES(LINK, REAL(linkat)(from_folder, from, to_folder, to, flags), a, b, strlen(b))
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }
