/* What `block_hashes` does with arrays, each in one pass; numpy takes ten. That module's docstrings have the
   definitions, `scripts/compile_proxy.py` compiles this, and the module does without where it is not. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

static const uint64_t GOLDEN = 0x9E3779B97F4A7C15u;

static uint64_t mix(uint64_t value)
{
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9u;
    value = (value ^ value >> 27) * 0x94D049BB133111EBu;
    return value ^ value >> 31;
}

static void chain(const char *ids, const uint64_t *multipliers, Py_ssize_t block_size, uint64_t hash,
                  uint64_t position, uint64_t *hashes, Py_ssize_t count)
{
    for (Py_ssize_t block = 0; block < count; block++) {
        uint64_t sum = ++position * GOLDEN;
        for (Py_ssize_t at = 0; at < block_size; at++, ids += sizeof(uint32_t)) {
            uint32_t id;
            memcpy(&id, ids, sizeof id); /* ids may lie at any address */
            sum += id * multipliers[at];
        }
        hashes[block] = hash += mix(sum);
    }
}

/* extend(ids, multipliers, parent_hash, position, hashes): arrays of uint32, uint64 and uint64, as bytes. */
static PyObject *extend(PyObject *module, PyObject *arguments)
{
    (void)module;
    Py_buffer ids, multipliers, hashes;
    unsigned long long parent, position;
    if (!PyArg_ParseTuple(arguments, "y*y*KKw*", &ids, &multipliers, &parent, &position, &hashes))
        return NULL;
    Py_ssize_t block_size = multipliers.len / sizeof(uint64_t), count = hashes.len / sizeof(uint64_t);
    int fits = block_size > 0 && ids.len / sizeof(uint32_t) / block_size == (size_t)count;
    if (fits)
        chain(ids.buf, multipliers.buf, block_size, parent, position, hashes.buf, count);
    else
        PyErr_SetString(PyExc_ValueError, "there has to be a hash for each full block of ids");
    PyBuffer_Release(&ids);
    PyBuffer_Release(&multipliers);
    PyBuffer_Release(&hashes);
    return fits ? Py_NewRef(Py_None) : NULL;
}

static int append(PyObject *list, unsigned long long value)
{
    PyObject *number = PyLong_FromUnsignedLongLong(value);
    int failed = number == NULL || PyList_Append(list, number);
    Py_XDECREF(number);
    return failed;
}

/* choose(hashes, mask) -> how many blocks each of those has whose bits are zero under the mask, and which they are. */
static PyObject *choose(PyObject *module, PyObject *arguments)
{
    (void)module;
    Py_buffer hashes;
    unsigned long long mask;
    if (!PyArg_ParseTuple(arguments, "y*K", &hashes, &mask))
        return NULL;
    PyObject *lengths = PyList_New(0), *chosen = PyList_New(0);
    int failed = lengths == NULL || chosen == NULL;
    const uint64_t *hash = hashes.buf;
    for (Py_ssize_t at = 0; !failed && at < hashes.len / (Py_ssize_t)sizeof *hash; at++)
        if (!(hash[at] & mask))
            failed = append(lengths, at + 1) || append(chosen, hash[at]);
    PyBuffer_Release(&hashes);
    PyObject *both = failed ? NULL : PyTuple_Pack(2, lengths, chosen);
    Py_XDECREF(lengths);
    Py_XDECREF(chosen);
    return both;
}

static PyMethodDef methods[] = {{"extend", extend, METH_VARARGS, NULL}, {"choose", choose, METH_VARARGS, NULL}, {0}};
static PyModuleDef definition = {.m_base = PyModuleDef_HEAD_INIT, .m_name = "block_hashes_native", .m_methods = methods};

PyMODINIT_FUNC PyInit_block_hashes_native(void)
{
    return PyModule_Create(&definition);
}
