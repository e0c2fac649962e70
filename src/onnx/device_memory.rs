//! A session's memory on a device: features that stay there, pixels on their way to it, and how much it holds.
//!
//! `ort` has no wrapper for an allocator's statistics (ONNX Runtime 1.23), so those calls are made here by hand.
#![expect(unsafe_code, reason = "ort does not wrap AllocatorGetStats")]

use std::ffi::CStr;
use std::ops::Add;
use std::ptr;

use ort::AsPointer;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::Session;
use ort::value::Tensor;

use super::cuda::device_id;

/// What the arena of a session holds on a device, in bytes. What CUDA's libraries and TensorRT take beside it is not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// In tensors, weights included.
    pub in_use: u64,
    /// Taken from the device; it is not given back before the session ends.
    pub reserved: u64,
    /// The most that it may take, if there is a limit.
    pub limit: Option<u64>,
}

/// What two sessions hold together. A limit is one only if both have it.
impl Add for DeviceMemory {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            in_use: self.in_use + other.in_use,
            reserved: self.reserved + other.reserved,
            limit: self.limit.zip(other.limit).map(|(one, other)| one + other),
        }
    }
}

/// The allocators of a session on a device.
#[derive(Debug)]
pub(super) struct OnDevice {
    features: Allocator,
    pixels: Allocator,
    /// What the last batch was copied from, kept for the next one of its size.
    staged: Option<Tensor<f32>>,
}

impl OnDevice {
    /// # Errors
    /// Those of ONNX Runtime: the session has no memory on that device.
    pub(super) fn of(session: &Session, index: u32) -> ort::Result<Self> {
        let memory = |device, memory_type| {
            let info = MemoryInfo::new(device, device_id(index), AllocatorType::Device, memory_type)?;
            Allocator::new(session, info)
        };
        let features = memory(AllocationDevice::CUDA, MemoryType::Default)?;
        // A device copies from pinned memory without the host's help. Without any, pageable memory does.
        let pixels = memory(AllocationDevice::CUDA_PINNED, MemoryType::CPUInput).unwrap_or_else(|error| {
            tracing::debug!(%error, "no pinned memory for images");
            Allocator::default()
        });
        Ok(Self::with(features, pixels))
    }

    /// Features and pixels in the memory of these allocators.
    pub(super) fn with(features: Allocator, pixels: Allocator) -> Self {
        Self { features, pixels, staged: None }
    }

    /// Memory for features `[n, feature_dim]`, new each time: they must not change when the next batch is computed.
    pub(super) fn features(&self, n: usize, feature_dim: usize) -> ort::Result<Tensor<f32>> {
        Tensor::new(&self.features, [n, feature_dim])
    }

    /// The pixels, and zeros as far as `shape` goes on, in memory from which the device can copy them.
    pub(super) fn stage(&mut self, pixels: &[f32], shape: [usize; 4]) -> ort::Result<&Tensor<f32>> {
        let is_of_shape = |tensor: &Tensor<f32>| {
            tensor.shape().iter().zip(shape).all(|(&kept, wanted)| usize::try_from(kept) == Ok(wanted))
        };
        let staged = match self.staged.take().filter(is_of_shape) {
            Some(kept) => kept,
            None => Tensor::new(&self.pixels, shape)?,
        };
        let staged = self.staged.insert(staged);
        let (_, values) = staged.try_extract_tensor_mut::<f32>()?;
        let n_real = pixels.len().min(values.len());
        let (real, padding) = values.split_at_mut(n_real);
        real.copy_from_slice(&pixels[..n_real]);
        padding.fill(0.0);
        Ok(staged)
    }

    /// How much the session holds, if ONNX Runtime tells.
    pub(super) fn held(&self) -> Option<DeviceMemory> {
        statistics(&self.features)
    }
}

/// An allocator's statistics; none from a library or an allocator that keeps none.
pub(super) fn statistics(allocator: &Allocator) -> Option<DeviceMemory> {
    let api = ort::api();
    let mut pairs = ptr::null_mut();
    // SAFETY: the allocator is valid while it is borrowed; the place to write to is ours.
    let status = unsafe { (api.AllocatorGetStats)(allocator.ptr(), &raw mut pairs) };
    // SAFETY: the status comes straight from a call of the interface and is handed over.
    unsafe { ort::Error::result_from_status(status) }.ok()?;
    if pairs.is_null() {
        return None;
    }
    let number = |key: &CStr| {
        // SAFETY: `pairs` is what the call above gave, and not released yet; the key ends with a zero byte.
        let value = unsafe { (api.GetKeyValue)(pairs, key.as_ptr()) };
        if value.is_null() {
            return None;
        }
        // SAFETY: a C string that `pairs` owns; it is read before they are released.
        unsafe { CStr::from_ptr(value) }.to_str().ok()?.parse::<i64>().ok()
    };
    let bytes = |key| number(key).and_then(|bytes| u64::try_from(bytes).ok());
    let held = match (bytes(c"InUse"), bytes(c"TotalAllocated")) {
        (Some(in_use), Some(reserved)) => {
            // No limit is told as -1, or as the largest number.
            let limit = bytes(c"Limit").filter(|&bytes| 0 < bytes && bytes < i64::MAX as u64);
            Some(DeviceMemory { in_use, reserved, limit })
        }
        _ => None,
    };
    // SAFETY: ours to release, once, and not used after it.
    unsafe { (api.ReleaseKeyValuePairs)(pairs) };
    held
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::build::build_session;
    use crate::onnx::{DeviceChoice, Provider, SessionOptions};

    const BACKBONE: &[u8] = include_bytes!("../../tests/data/onnx/backbone.onnx");

    fn session() -> Session {
        let options = SessionOptions { device: DeviceChoice::Cpu, ..SessionOptions::default() };
        build_session(BACKBONE, None, &options, Provider::Cpu, None).expect("a valid backbone")
    }

    fn arena(session: &Session) -> Allocator {
        let info = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default);
        Allocator::new(session, info.expect("a description")).expect("the session's arena")
    }

    #[test]
    fn an_arena_tells_what_it_holds() {
        let session = session();
        let arena = arena(&session);
        let before = statistics(&arena).expect("an arena keeps statistics");
        let tensor = Tensor::<f32>::new(&arena, [1000_usize, 1000]).expect("memory");
        let with = statistics(&arena).expect("statistics");
        println!("{before:?}, then {with:?}");
        assert!(before.in_use + 4_000_000 <= with.in_use && with.in_use <= with.reserved);
        assert_eq!(with.limit, None);
        drop(tensor);
        let after = statistics(&arena).expect("statistics");
        assert_eq!((after.in_use, after.reserved), (before.in_use, with.reserved));
    }

    #[test]
    fn two_sessions_hold_what_each_of_them_does() {
        let held = |in_use, reserved, limit| DeviceMemory { in_use, reserved, limit };
        assert_eq!(held(1, 10, Some(100)) + held(2, 20, Some(200)), held(3, 30, Some(300)));
        assert_eq!(held(1, 10, None) + held(2, 20, Some(200)), held(3, 30, None));
    }

    #[test]
    fn what_keeps_no_statistics_tells_nothing() {
        crate::onnx::init(None).expect("run `make ort`");
        assert_eq!(statistics(&Allocator::default()), None);
    }

    #[test]
    fn what_is_staged_is_the_pixels_and_then_zeros() {
        crate::onnx::init(None).expect("run `make ort`");
        let mut memory = OnDevice::with(Allocator::default(), Allocator::default());
        let staged = |memory: &mut OnDevice, pixels: &[f32], n: usize| {
            let tensor = memory.stage(pixels, [n, 3, 1, 1]).expect("memory");
            (tensor.data_ptr(), tensor.try_extract_tensor::<f32>().expect("floats").1.to_vec())
        };
        let (first, values) = staged(&mut memory, &[1.0; 6], 2);
        assert_eq!(values, [1.0; 6]);
        let (again, values) = staged(&mut memory, &[2.0; 3], 2);
        assert_eq!(values, [2.0, 2.0, 2.0, 0.0, 0.0, 0.0]);
        assert_eq!(first, again, "memory of the same size is used again");
        assert_eq!(staged(&mut memory, &[3.0; 3], 1).1, [3.0; 3]);
    }
}
