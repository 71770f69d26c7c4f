//! The errors of arguments: what was passed, with its shape, and the way out.
//!
//! Owns: wording and codes (`KS-LAY-1nn`, `KS-KEY-1nn`, `KS-CFG-15n`). Never does:
//! checking. Invariant: a code never changes its meaning.

use keystow_core::error::{Error, ErrorKind};
use keystow_core::key::{Fingerprint, KEY_BYTES};
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::errors::exception;
use crate::memory::Name;

const FORMS: &str = "pass an array with one row a key on its leading axis (bytes-like, numpy, \
                     torch on the CPU), or a sequence of one such array a key.";

fn layout(code: &'static str, message: String, hint: impl Into<String>) -> Error {
    Error::new(ErrorKind::Layout, code, message, hint)
}

fn key_format(code: &'static str, message: String, hint: impl Into<String>) -> Error {
    Error::new(ErrorKind::KeyFormat, code, message, hint)
}

/// Type and shape of an argument, as far as it tells them.
fn describe(object: &Bound<'_, PyAny>) -> String {
    let kind = object.get_type().name().map_or_else(|_| "object".into(), |name| name.to_string());
    let py = object.py();
    let told = |name: &str| {
        let value = object.getattr(PyString::new(py, name)).ok()?;
        Some(value.str().ok()?.to_string())
    };
    match (told("shape"), told("dtype")) {
        (Some(shape), Some(dtype)) => return format!("{kind} of shape {shape} and dtype {dtype}"),
        (Some(shape), None) => return format!("{kind} of shape {shape}"),
        _ => {}
    }
    match object.len() {
        Ok(length) => format!("{kind} of length {length}"),
        Err(_) => kind,
    }
}

/// KS-LAY-101: the number of rows is not the number of keys.
pub fn wrong_count(object: &Bound<'_, PyAny>, name: &str, count: usize) -> PyErr {
    let what = describe(object);
    let message = format!("{name} is {what}, which is not one row for each of {count} keys.");
    exception(object.py(), &layout("KS-LAY-101", message, FORMS).with("keys", count))
}

/// KS-LAY-102: no memory at all.
pub fn not_memory(object: &Bound<'_, PyAny>, name: &Name<'_>) -> PyErr {
    let message = format!("{name} is {}, which is no memory.", describe(object));
    exception(object.py(), &layout("KS-LAY-102", message, FORMS))
}

/// KS-LAY-103: it has memory and does not give it away.
pub fn unreadable(object: &Bound<'_, PyAny>, name: &Name<'_>, cause: PyErr) -> PyErr {
    let py = object.py();
    let what = describe(object);
    let axes = object.getattr("ndim").and_then(|it| it.extract::<usize>());
    if matches!(axes, Ok(0)) {
        let message = format!("{name} is {what}, a single value without an axis.");
        return exception(py, &layout("KS-LAY-103", message, FORMS));
    }
    let message = format!("{name} is {what}, whose memory can't be reached: {cause}.");
    let hint = "pass a plain strided array; a dtype that numpy does not know goes as \
                array.view(numpy.uint8) or numpy.uint16.";
    let error = exception(py, &layout("KS-LAY-103", message, hint));
    error.set_cause(py, Some(cause));
    error
}

/// KS-LAY-104: strided.
pub fn not_contiguous(object: &Bound<'_, PyAny>, name: &Name<'_>) -> PyErr {
    let message = format!("{name} is {}, which is not C-contiguous.", describe(object));
    let hint = "tensor.contiguous() or numpy.ascontiguousarray(array) makes a copy that is.";
    exception(object.py(), &layout("KS-LAY-104", message, hint))
}

/// KS-LAY-105: read-only where it would be written.
pub fn read_only(object: &Bound<'_, PyAny>, name: &Name<'_>) -> PyErr {
    let message = format!("{name} is {}, which is read-only.", describe(object));
    let hint = "pass writable memory: a bytearray, numpy.empty(...) or torch.empty(...).";
    exception(object.py(), &layout("KS-LAY-105", message, hint))
}

/// KS-LAY-106: on a device.
pub fn not_on_cpu(object: &Bound<'_, PyAny>, name: &Name<'_>) -> PyErr {
    let device = object.getattr("device").and_then(|it| Ok(it.str()?.to_string()));
    let device = device.unwrap_or_else(|_| "unknown".into());
    let message = format!("{name} is on device {device}: only CPU memory is taken.");
    let hint = "copy it to the host first: tensor.cpu(), or a pinned tensor and copy_().";
    exception(object.py(), &layout("KS-LAY-106", message, hint).with("device", device))
}

/// KS-LAY-107: a tensor without memory.
pub fn no_address(object: &Bound<'_, PyAny>, name: &Name<'_>) -> PyErr {
    let message = format!("{name} is {}, which has no memory.", describe(object));
    let hint = "pass a real CPU tensor; fake and functional tensors hold no bytes.";
    exception(object.py(), &layout("KS-LAY-107", message, hint))
}

/// KS-LAY-108: autograd would not see the write.
pub fn needs_grad(object: &Bound<'_, PyAny>, name: &Name<'_>) -> PyErr {
    let message = format!("{name} requires grad: autograd would not see what is written.");
    exception(object.py(), &layout("KS-LAY-108", message, "pass tensor.detach()."))
}

/// KS-LAY-109: its bytes are not its values.
pub fn lazy_view(object: &Bound<'_, PyAny>, name: &Name<'_>) -> PyErr {
    let message = format!("{name} is a lazy conjugate or negative view.");
    let hint = "tensor.resolve_conj().resolve_neg() carries it out.";
    exception(object.py(), &layout("KS-LAY-109", message, hint))
}

/// KS-LAY-110: token ids can't be cut into blocks.
pub fn no_block_tokens(py: Python<'_>) -> PyErr {
    let message = "this layout does not say how many tokens a block holds.".to_owned();
    let hint = "use keys_of(hashes) with the engine's own block hashes, or give Layout.opaque a \
                block_tokens=.";
    exception(py, &layout("KS-LAY-110", message, hint))
}

/// KS-LAY-111: token ids in a form that holds none.
pub fn not_tokens(object: &Bound<'_, PyAny>) -> PyErr {
    let message = format!("tokens is {}, which is no row of token ids.", describe(object));
    let hint = "pass a list of ints, or a one-dimensional integer array (numpy, torch on the CPU, \
                array, memoryview).";
    exception(object.py(), &layout("KS-LAY-111", message, hint))
}

/// KS-LAY-112: something else where a layout belongs.
pub fn not_layout(object: &Bound<'_, PyAny>) -> PyErr {
    let message = format!("layout is {}, not a Layout.", describe(object));
    let hint = "pass Layout.from_model(\"config.json\", ...) or Layout.opaque(name, ...).";
    exception(object.py(), &layout("KS-LAY-112", message, hint))
}

/// KS-KEY-101: keys of another store.
pub fn other_fingerprint(
    py: Python<'_>,
    name: &str,
    has: &Fingerprint,
    wants: &Fingerprint,
) -> PyErr {
    let (has, wants) = (hex(&has.0), hex(&wants.0));
    let message = format!("{name} have fingerprint {has}, this store {wants}.");
    let hint = "make keys with the store's own layout, namespace and salt: store.keys(tokens).";
    exception(py, &key_format("KS-KEY-101", message, hint).with("keys", has).with("store", wants))
}

/// KS-KEY-102: packed keys of a broken length.
pub fn not_packed(py: Python<'_>, bytes: usize, width: usize) -> PyErr {
    let message = format!("{bytes} packed bytes are no whole number of {width}-byte pieces.");
    let hint = "packed keys are 16 bytes each; packed hashes take width=.";
    exception(py, &key_format("KS-KEY-102", message, hint).with("bytes", bytes))
}

/// KS-KEY-103: nothing that could be keys.
pub fn not_keys(object: &Bound<'_, PyAny>, name: &str) -> PyErr {
    let message = format!("{name} is {}, which is no form of keys.", describe(object));
    let hint = "pass Keys (store.keys, block_keys), a packed buffer of 16-byte keys, or a list of \
                bytes: an engine's own hashes.";
    exception(object.py(), &key_format("KS-KEY-103", message, hint))
}

/// KS-KEY-104: no token id.
pub fn bad_token(py: Python<'_>, index: usize, token: &str) -> PyErr {
    let message =
        format!("token {index} is {token}: token ids are whole numbers 0 to {}.", u32::MAX);
    let hint = "drop padding (often -1 or -100) before making keys.";
    exception(py, &key_format("KS-KEY-104", message, hint).with("index", index))
}

/// KS-KEY-105: not (start, end, digest).
pub fn bad_extra(py: Python<'_>, index: usize, cause: &PyErr) -> PyErr {
    let message = format!("extra {index} is not (start, end, digest): {cause}.");
    let hint = "start and end are token positions from the start of the call, digest is 1 to 64 \
                bytes.";
    exception(py, &key_format("KS-KEY-105", message, hint).with("index", index))
}

/// KS-KEY-106: no parent.
pub fn bad_parent(object: &Bound<'_, PyAny>) -> PyErr {
    let message = format!("parent is {}, not one key.", describe(object));
    let hint = format!("pass the Keys before (their last key counts), or {KEY_BYTES} bytes.");
    exception(object.py(), &key_format("KS-KEY-106", message, hint))
}

/// KS-KEY-107: a stride through a chain is no chain.
pub fn slice_step(py: Python<'_>, step: isize) -> PyErr {
    let message = format!("Keys are a chain: a slice with step {step} is none.");
    let hint = "slice with step 1, or take single keys: [keys[i] for i in ...].";
    exception(py, &key_format("KS-KEY-107", message, hint).with("step", step))
}

/// KS-KEY-108: a width that cuts nothing.
pub fn bad_width(py: Python<'_>, message: String) -> PyErr {
    let hint = "pass a list of bytes without width, or one packed buffer with the bytes of a hash \
                as width.";
    exception(py, &key_format("KS-KEY-108", message, hint))
}

/// KS-KEY-109: a request of a trace that is no sequence of ids.
pub fn not_a_request(object: &Bound<'_, PyAny>, request: usize) -> PyErr {
    let message = format!("request {request} is {}, not a sequence of ids.", describe(object));
    let hint = "a trace is an iterable of requests, each an iterable of block ids: [[1, 2], [1]].";
    exception(object.py(), &key_format("KS-KEY-109", message, hint).with("request", request))
}

/// KS-KEY-110: an id of a trace that is none.
pub fn not_an_id(object: &Bound<'_, PyAny>, request: usize, index: usize) -> PyErr {
    let what = object.repr().map_or_else(|_| "?".into(), |text| text.to_string());
    let message = format!("id {index} of request {request} is {what}.");
    let hint = "ids are whole numbers of at most 128 bits, bytes or text.";
    let error = key_format("KS-KEY-110", message, hint).with("request", request);
    exception(object.py(), &error.with("index", index))
}

/// KS-CFG-150: an option that waits for a later tier or pool.
pub fn not_built(py: Python<'_>, option: &str) -> PyErr {
    let message = format!("{option}= is not supported by this version: it takes None only.");
    let hint = format!("leave {option}= out.");
    exception(py, &Error::new(ErrorKind::Config, "KS-CFG-150", message, hint))
}

/// KS-CFG-151: a time that is none.
pub fn bad_seconds(py: Python<'_>, name: &str, seconds: f64) -> PyErr {
    let message = format!("{name}={seconds} is no time to wait.");
    let hint = "give seconds from 0 to 1e9, or None for the store's own limit.";
    exception(py, &Error::new(ErrorKind::Config, "KS-CFG-151", message, hint).with("s", seconds))
}

/// KS-CFG-152: a priority outside its three values.
pub fn bad_priority(py: Python<'_>, priority: i64) -> PyErr {
    let message = format!("priority={priority}: it is -1, 0 or 1.");
    let error = Error::new(ErrorKind::Config, "KS-CFG-152", message, "use one of the three.");
    exception(py, &error.with("priority", priority))
}

/// KS-CFG-153: an unknown word where the core has a closed list.
pub fn bad_choice(py: Python<'_>, name: &str, value: &str, known: &[&str]) -> PyErr {
    let message = format!("{name}={value:?} is unknown.");
    let hint = format!("use one of: {}.", known.join(", "));
    exception(py, &Error::new(ErrorKind::Config, "KS-CFG-153", message, hint))
}

/// KS-CFG-154: fewer than none.
pub fn bad_count(py: Python<'_>, name: &str, value: i64) -> PyErr {
    let message = format!("{name}={value} is no number of things.");
    let hint = format!("give {name}= a whole number from 0.");
    exception(py, &Error::new(ErrorKind::Config, "KS-CFG-154", message, hint))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
