//! Core errors as Python exceptions.
//!
//! Owns: the Python classes of `keystow.errors`, looked up once. Never does: deciding what is an
//! error. Invariant: whatever goes wrong, an exception comes out; if the class can't be had, the
//! exception says why.

use keystow_core::error::{Error, ErrorKind};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyModule};

/// The exception classes by the core's kinds.
struct Classes {
    config: Py<PyAny>,
    key_format: Py<PyAny>,
    layout: Py<PyAny>,
    capacity: Py<PyAny>,
    closed: Py<PyAny>,
    locked: Py<PyAny>,
    format: Py<PyAny>,
    ssd: Py<PyAny>,
}

static CLASSES: PyOnceLock<Classes> = PyOnceLock::new();

impl Classes {
    fn of(py: Python<'_>) -> PyResult<&Self> {
        CLASSES.get_or_try_init(py, || {
            let module = PyModule::import(py, "keystow.errors")?;
            let class = |name| module.getattr(name).map(Bound::unbind);
            Ok(Self {
                config: class("ConfigError")?,
                key_format: class("KeyFormatError")?,
                layout: class("LayoutError")?,
                capacity: class("CapacityError")?,
                closed: class("StoreClosedError")?,
                locked: class("StoreLockedError")?,
                format: class("FormatError")?,
                ssd: class("SsdError")?,
            })
        })
    }

    fn class(&self, kind: ErrorKind) -> &Py<PyAny> {
        match kind {
            ErrorKind::Config => &self.config,
            ErrorKind::KeyFormat => &self.key_format,
            ErrorKind::Layout => &self.layout,
            ErrorKind::Capacity => &self.capacity,
            ErrorKind::Closed => &self.closed,
            ErrorKind::Locked => &self.locked,
            ErrorKind::Format => &self.format,
            ErrorKind::Ssd => &self.ssd,
        }
    }
}

/// The exception for a core error.
#[cold]
pub fn exception(py: Python<'_>, error: &Error) -> PyErr {
    build(py, error).unwrap_or_else(|failure| failure)
}

fn build(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    let context = PyDict::new(py);
    for (name, value) in &error.context {
        // The core keeps every number as text; a whole number becomes an int again.
        match value.parse::<i128>() {
            Ok(number) => context.set_item(*name, number)?,
            Err(_) => context.set_item(*name, value)?,
        }
    }
    let named = PyDict::new(py);
    named.set_item("code", error.code)?;
    named.set_item("hint", &error.hint)?;
    named.set_item("context", context)?;
    let class = Classes::of(py)?.class(error.kind);
    let instance = class.bind(py).call((&error.message,), Some(&named))?;
    Ok(PyErr::from_value(instance))
}

/// A core result as a Python result.
pub trait OrRaise<T> {
    /// The value, or the exception for the error.
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrRaise<T> for Result<T, Error> {
    #[inline]
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| exception(py, &error))
    }
}

/// What `pickle` and `copy` get from an object that owns memory of this process.
pub fn no_pickle(what: &str) -> PyErr {
    PyTypeError::new_err(format!(
        "cannot pickle {what}: it stands for memory of this process. Hint: pickle Keys, which are \
         plain bytes, and open a Store in each process."
    ))
}
