/* The record path of TLS connections in C: an optional part, behind ztunnel/tls/records.py.
 *
 * One call reads a socket and decrypts, one call encrypts and sends. OpenSSL is the one inside the package
 * "cryptography": `bind` is given the addresses of its functions, and this file is linked with no other.
 *
 * SSL and BIO objects come as addresses. They belong to Python objects that the caller holds during the call
 * (`AcceleratedRecords`); nothing here keeps an address. The interpreter's lock is held throughout: a call
 * works on at most 128 KiB, sockets never block it, and so the two buffers below can serve all threads.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000 /* one binary for Python 3.11 and later */
#include <Python.h>

#include <errno.h>
#include <sys/socket.h>

#define RECORD (16 * 1024)
#define CHUNK (8 * RECORD)
/* Room for what was read, and for the part of a record that OpenSSL kept from before. */
#define PLAIN_SIZE (CHUNK + 2 * RECORD)

static unsigned char cipher[CHUNK];
static unsigned char plain[PLAIN_SIZE];

typedef struct ssl SSL;
typedef struct bio BIO;

static struct {
    void (*ERR_clear_error)(void);
    int (*SSL_read)(SSL *, void *, int);
    int (*SSL_write)(SSL *, const void *, int);
    int (*SSL_get_error)(SSL *, int);
    void (*SSL_set_bio)(SSL *, BIO *, BIO *);
    BIO *(*BIO_new_mem_buf)(void *, int);
    long (*BIO_set_mem_eof_return)(BIO *, int);
    long (*BIO_get_mem_data)(BIO *, char **);
    int (*BIO_read)(BIO *, void *, int);
    unsigned long (*OpenSSL_version_num)(void);
} openssl;

static int bound;

static const struct {
    const char *name;
    void **function;
} functions[] = {
#define FUNCTION(name) {#name, (void **)&openssl.name}
    FUNCTION(ERR_clear_error),  FUNCTION(SSL_read),         FUNCTION(SSL_write),
    FUNCTION(SSL_get_error),    FUNCTION(SSL_set_bio),      FUNCTION(BIO_new_mem_buf),
    FUNCTION(BIO_set_mem_eof_return), FUNCTION(BIO_get_mem_data), FUNCTION(BIO_read),
    FUNCTION(OpenSSL_version_num),
};

/* bind({name: address}): the functions of OpenSSL, before anything else is called. Returns its version number. */
static PyObject *take_addresses(PyObject *module, PyObject *addresses) {
    void *found[sizeof functions / sizeof *functions];
    const size_t count = sizeof functions / sizeof *functions;
    for (size_t i = 0; i < count; i++) {
        PyObject *address = PyMapping_GetItemString(addresses, functions[i].name);
        if (address == NULL) return NULL;
        found[i] = PyLong_AsVoidPtr(address);
        Py_DECREF(address);
        if (found[i] == NULL) {
            if (!PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "%s has no address", functions[i].name);
            return NULL;
        }
    }
    for (size_t i = 0; i < count; i++) *functions[i].function = found[i];
    bound = 1;
    return PyLong_FromUnsignedLong(openssl.OpenSSL_version_num());
}

/* The arguments that all calls begin with. Returns 0 with an exception if they are not what they must be. */
static int begin(PyObject *const *args, Py_ssize_t count, Py_ssize_t wanted, SSL **ssl, BIO **outgoing, int *fd) {
    if (!bound || count != wanted) {
        PyErr_SetString(PyExc_TypeError, "not bound, or a wrong number of arguments");
        return 0;
    }
    *ssl = PyLong_AsVoidPtr(args[0]);
    *outgoing = PyLong_AsVoidPtr(args[1]);
    *fd = (int)PyLong_AsLong(args[2]);
    if (PyErr_Occurred()) return 0;
    if (*ssl == NULL || *outgoing == NULL) {
        PyErr_SetString(PyExc_ValueError, "an address is null");
        return 0;
    }
    return 1;
}

/* Decrypts the first `size` bytes of `cipher`: the plaintext, and in `error` SSL_get_error of the last read. */
static PyObject *decrypt(SSL *ssl, BIO *outgoing, int size, int *error) {
    BIO *incoming = openssl.BIO_new_mem_buf(cipher, size);
    if (incoming == NULL) return PyErr_NoMemory();
    openssl.BIO_set_mem_eof_return(incoming, -1);
    openssl.SSL_set_bio(ssl, incoming, outgoing);
    openssl.ERR_clear_error();
    int total = 0, got;
    while ((got = openssl.SSL_read(ssl, plain + total, PLAIN_SIZE - total)) > 0) total += got;
    *error = openssl.SSL_get_error(ssl, got);
    return PyBytes_FromStringAndSize((char *)plain, total);
}

/* receive(ssl, outgoing, fd, limit): None, or (plaintext, bytes read, SSL_get_error); see `Records.receive`. */
static PyObject *receive(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    SSL *ssl;
    BIO *outgoing;
    int fd, error = 0;
    if (!begin(args, count, 4, &ssl, &outgoing, &fd)) return NULL;
    long limit = PyLong_AsLong(args[3]);
    if (limit < 1 || limit > CHUNK) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "the limit is out of range");
        return NULL;
    }
    ssize_t size;
    while ((size = recv(fd, cipher, (size_t)limit, MSG_DONTWAIT)) < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK) Py_RETURN_NONE;
        if (errno != EINTR) return PyErr_SetFromErrno(PyExc_OSError);
        if (PyErr_CheckSignals() < 0) return NULL;
    }
    if (size == 0) return Py_BuildValue("(y#ii)", "", (Py_ssize_t)0, 0, 0);
    PyObject *data = decrypt(ssl, outgoing, (int)size, &error);
    if (data == NULL) return NULL;
    return Py_BuildValue("(Nii)", data, (int)size, error);
}

/* Sends what waits in the outgoing BIO: how many bytes still do, or -1 with an exception. */
static long drain(BIO *outgoing, int fd) {
    char *waiting;
    long size;
    while ((size = openssl.BIO_get_mem_data(outgoing, &waiting)) > 0) {
        ssize_t taken = send(fd, waiting, (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (taken < 0) {
            if (errno == EAGAIN || errno == EWOULDBLOCK) return size;
            if (errno != EINTR) {
                PyErr_SetFromErrno(PyExc_OSError);
                return -1;
            }
            if (PyErr_CheckSignals() < 0) return -1;
            continue;
        }
        /* Only reading takes bytes out of a BIO. */
        while (taken > 0) {
            int dropped = openssl.BIO_read(outgoing, plain, taken < PLAIN_SIZE ? (int)taken : PLAIN_SIZE);
            if (dropped <= 0) break;
            taken -= dropped;
        }
    }
    return 0;
}

/* flush(ssl, outgoing, fd): how many bytes of records still wait; see `Records.flush`. */
static PyObject *flush(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    SSL *ssl;
    BIO *outgoing;
    int fd;
    if (!begin(args, count, 3, &ssl, &outgoing, &fd)) return NULL;
    long left = drain(outgoing, fd);
    return left < 0 ? NULL : PyLong_FromLong(left);
}

/* transmit(ssl, outgoing, fd, data): how many bytes of records wait, -1 if OpenSSL refuses; see `Records.send`. */
static PyObject *transmit(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    SSL *ssl;
    BIO *outgoing;
    int fd;
    Py_buffer data;
    if (!begin(args, count, 4, &ssl, &outgoing, &fd)) return NULL;
    if (PyObject_GetBuffer(args[3], &data, PyBUF_SIMPLE) < 0) return NULL;
    int written = -1;
    if (data.len > 0 && data.len <= CHUNK) {
        openssl.ERR_clear_error();
        written = openssl.SSL_write(ssl, data.buf, (int)data.len);
    } else {
        PyErr_SetString(PyExc_ValueError, "the data are empty or too long");
    }
    PyBuffer_Release(&data);
    if (PyErr_Occurred()) return NULL;
    if (written <= 0) return PyLong_FromLong(-1);
    long left = drain(outgoing, fd);
    return left < 0 ? NULL : PyLong_FromLong(left);
}

static PyMethodDef methods[] = {
    {"bind", take_addresses, METH_O, NULL},
    {"receive", (PyCFunction)(void (*)(void))receive, METH_FASTCALL, NULL},
    {"flush", (PyCFunction)(void (*)(void))flush, METH_FASTCALL, NULL},
    {"transmit", (PyCFunction)(void (*)(void))transmit, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "ztunnel.tls._accelerator", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__accelerator(void) { return PyModule_Create(&definition); }
