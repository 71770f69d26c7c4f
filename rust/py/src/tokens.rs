//! Token ids: from a list, any integer buffer, or an integer tensor, to `Vec<u32>`.
//!
//! Owns: reading integers of every width, with any stride. Never does: hashing. Invariant: the
//! result is a copy, so nothing a caller does meanwhile changes keys half-way; an id outside
//! 0..2^32 is an error that names its position.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString, PyTuple};

use crate::memory::{Name, address, check_device, export, exports_buffer, is_tensor};
use crate::refuse;

/// Token ids of a Python object.
pub fn token_ids(object: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    if let Ok(list) = object.cast::<PyList>() {
        return from_items(list.len(), list.iter().map(Ok));
    }
    if let Ok(tuple) = object.cast::<PyTuple>() {
        return from_items(tuple.len(), tuple.iter().map(Ok));
    }
    if exports_buffer(object) {
        return from_buffer(object);
    }
    if is_tensor(object)? {
        return from_tensor(object);
    }
    match object.try_iter() {
        Ok(items) if !object.is_instance_of::<PyString>() => from_items(0, items),
        _ => Err(refuse::not_tokens(object)),
    }
}

fn from_items<'py>(
    expected: usize,
    items: impl Iterator<Item = PyResult<Bound<'py, PyAny>>>,
) -> PyResult<Vec<u32>> {
    let mut tokens = Vec::with_capacity(expected);
    for (index, item) in items.enumerate() {
        let item = item?;
        match item.extract::<u32>() {
            Ok(token) => tokens.push(token),
            Err(_) => {
                let text = item.repr().map_or_else(|_| "?".into(), |text| text.to_string());
                return Err(refuse::bad_token(item.py(), index, &text));
            }
        }
    }
    Ok(tokens)
}

fn from_buffer(object: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    let name = Name::whole("tokens");
    let buffer = export(object).map_err(|cause| refuse::unreadable(object, &name, cause))?;
    let integer = Integer::of_format(buffer.format().to_bytes(), buffer.item_size());
    let (Some(integer), [length], None) = (integer, buffer.shape(), buffer.suboffsets()) else {
        return Err(refuse::not_tokens(object));
    };
    let run = Run { at: buffer.buf_ptr().cast(), length: *length, stride: buffer.strides()[0] };
    // SAFETY: the export keeps `length` items of `integer` alive at this stride, and we are
    // attached: Python code that would change them waits.
    unsafe { run.read(integer) }.map_err(|wrong| wrong.raise(object.py()))
}

fn from_tensor(object: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
    let py = object.py();
    let name = Name::whole("tokens");
    check_device(object, &name)?;
    let dtype = object.getattr(intern!(py, "dtype"))?.str()?;
    let integer = Integer::of_name(dtype.to_cow()?.trim_start_matches("torch."));
    let shape = object.getattr(intern!(py, "shape"))?;
    let (Some(integer), 1) = (integer, shape.len()?) else {
        return Err(refuse::not_tokens(object));
    };
    let (at, _) = address(object, &name)?;
    let items: isize = object.call_method1(intern!(py, "stride"), (0,))?.extract()?;
    let stride = items * integer.bytes as isize;
    let run = Run { at: at as *const u8, length: shape.get_item(0)?.extract()?, stride };
    // SAFETY: the caller's tensor holds `length` items of `integer` at this stride, and we are
    // attached: Python code that would change or free them waits.
    unsafe { run.read(integer) }.map_err(|wrong| wrong.raise(py))
}

/// An integer type of the struct module or of torch, in this machine's byte order.
#[derive(Clone, Copy)]
struct Integer {
    bytes: usize,
    signed: bool,
}

impl Integer {
    fn of_format(format: &[u8], bytes: usize) -> Option<Self> {
        let (order, code) = match format {
            [code] => (b'@', *code),
            [order, code] => (*order, *code),
            _ => return None,
        };
        let native = match order {
            b'@' | b'=' => true,
            b'<' => cfg!(target_endian = "little"),
            b'>' | b'!' => cfg!(target_endian = "big"),
            _ => false,
        };
        let signed = match code {
            b'b' | b'h' | b'i' | b'l' | b'q' | b'n' => true,
            b'B' | b'H' | b'I' | b'L' | b'Q' | b'N' => false,
            _ => return None,
        };
        let known = matches!(bytes, 1 | 2 | 4 | 8) && (native || bytes == 1);
        known.then_some(Self { bytes, signed })
    }

    fn of_name(dtype: &str) -> Option<Self> {
        let (signed, bits) = match dtype.strip_prefix('u') {
            Some(rest) => (false, rest),
            None => (true, dtype),
        };
        let bits: usize = bits.strip_prefix("int")?.parse().ok()?;
        matches!(bits, 8 | 16 | 32 | 64).then_some(Self { bytes: bits / 8, signed })
    }
}

/// Items in memory, `stride` bytes from one to the next.
struct Run {
    at: *const u8,
    length: usize,
    stride: isize,
}

/// An id outside 0..2^32.
struct Wrong {
    index: usize,
    value: i128,
}

impl Wrong {
    fn raise(&self, py: Python<'_>) -> PyErr {
        refuse::bad_token(py, self.index, &self.value.to_string())
    }
}

impl Run {
    /// # Safety
    /// `length` items of the type must be readable at this address and stride, and stay unchanged.
    unsafe fn read(&self, integer: Integer) -> Result<Vec<u32>, Wrong> {
        // SAFETY: the caller's promise, for the type with this width and sign.
        unsafe {
            match (integer.signed, integer.bytes) {
                (true, 1) => self.read_as::<i8>(),
                (true, 2) => self.read_as::<i16>(),
                (true, 4) => self.read_as::<i32>(),
                (true, _) => self.read_as::<i64>(),
                (false, 1) => self.read_as::<u8>(),
                (false, 2) => self.read_as::<u16>(),
                (false, 4) => self.read_as::<u32>(),
                (false, _) => self.read_as::<u64>(),
            }
        }
    }

    /// # Safety
    /// As `read`, for items of `T`.
    unsafe fn read_as<T: Copy + TryInto<u32> + Into<i128>>(&self) -> Result<Vec<u32>, Wrong> {
        let item = |index: usize| {
            let at = self.at.wrapping_offset(index as isize * self.stride).cast::<T>();
            // SAFETY: the caller's promise; no alignment is assumed.
            unsafe { at.read_unaligned() }
        };
        let mut all_fit = true;
        let mut fit = |item: T| {
            let token = item.try_into();
            all_fit &= token.is_ok();
            token.unwrap_or(0)
        };
        // Two loops, so that the common one has a constant stride and becomes vector code.
        let tokens: Vec<u32> = if self.stride == size_of::<T>() as isize {
            let packed = |index| {
                // SAFETY: as above; the stride is the size of an item.
                unsafe { self.at.cast::<T>().wrapping_add(index).read_unaligned() }
            };
            (0..self.length).map(|index| fit(packed(index))).collect()
        } else {
            (0..self.length).map(|index| fit(item(index))).collect()
        };
        if all_fit {
            return Ok(tokens);
        }
        let wrong = (0..self.length).find(|&index| item(index).try_into().is_err()).unwrap_or(0);
        Err(Wrong { index: wrong, value: item(wrong).into() })
    }
}
