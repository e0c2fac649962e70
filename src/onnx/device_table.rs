//! A table of a fit on a device.
#![expect(unsafe_code, reason = "ort has no part of a tensor")]

use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{OutputSelector, RunOptions, Session};
use ort::value::{Tensor, TensorRef};

use super::build::{build_session, tensor_over};
use super::cuda::device_id;
use super::device::{Provider, SessionOptions};
use super::error::OnnxError;
use super::fit_graph::{COPY, TABLE, encode_copy};

/// Values that are copied at a time: 64 MB.
const VALUES_AT_A_TIME: usize = 1 << 24;

/// A table, copied to a device, in the memory of a session of its own: an arena gives nothing back before its session ends, and
/// this one ends with the table.
#[derive(Debug)]
pub(super) struct DeviceTable {
    /// It stands first to be dropped before the session whose memory it is.
    tensor: Tensor<f32>,
    _session: Session,
}

impl DeviceTable {
    /// Copies a table, given row by row, in pieces: the device has to hold one of them beside it, and the host none.
    ///
    /// # Why not `Tensor::to`?
    /// `ort` 2.0.0-rc.15 copies with a session that it keeps until the process ends, that knows no limit, and that takes the
    /// table's size twice.
    ///
    /// # Errors
    /// Those of loading and running the graph that copies: above all, the table does not fit.
    pub(super) fn copy(
        values: &[f32],
        n_columns: usize,
        options: &SessionOptions,
        provider: Provider,
    ) -> Result<Self, OnnxError> {
        let mut session = build_session(&encode_copy(), None, options, provider, None)?;
        let tensor = copied(values, n_columns.max(1), VALUES_AT_A_TIME, &mut session, provider);
        let tensor = tensor.map_err(|source| OnnxError::Run { n: values.len() / n_columns.max(1), source })?;
        Ok(Self { tensor, _session: session })
    }

    pub(super) fn tensor(&self) -> &Tensor<f32> {
        &self.tensor
    }
}

/// A table in the memory of a session that copies.
fn copied(
    values: &[f32],
    n_columns: usize,
    n_at_a_time: usize,
    session: &mut Session,
    provider: Provider,
) -> ort::Result<Tensor<f32>> {
    let allocator = Allocator::new(session, memory_of(provider)?)?;
    let mut tensor = Tensor::<f32>::new(&allocator, [values.len() / n_columns, n_columns])?;
    let mut place = tensor.data_ptr_mut().cast::<f32>();
    for piece in values.chunks((n_at_a_time / n_columns).max(1) * n_columns) {
        let shape = [piece.len() / n_columns, n_columns];
        // SAFETY: these rows are the tensor's, which is of this size, outlives the run, and is nobody else's yet.
        let rows = unsafe { tensor_over(place, shape, tensor.memory_info(), &allocator) }?;
        let outputs = OutputSelector::no_default().with(COPY).preallocate(COPY, rows);
        let run_options = RunOptions::new()?.with_outputs(outputs);
        session.run_with_options(ort::inputs![TABLE => TensorRef::from_array_view((shape, piece))?], &run_options)?;
        place = place.wrapping_add(piece.len());
    }
    Ok(tensor)
}

fn memory_of(provider: Provider) -> ort::Result<MemoryInfo<'static>> {
    match provider.device_index() {
        Some(index) => {
            MemoryInfo::new(AllocationDevice::CUDA, device_id(index), AllocatorType::Device, MemoryType::Default)
        }
        None => MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Arena, MemoryType::Default),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::DeviceChoice;
    use crate::onnx::device_memory::statistics;

    #[test]
    fn a_table_is_copied_into_memory_of_its_own_session_and_the_copy_returns() {
        let options = SessionOptions { device: DeviceChoice::Cpu, ..SessionOptions::default() };
        let values: Vec<f32> = (0..1_000_000).map(|i| i as f32).collect();
        // All at once, in pieces of which the last is shorter, and row by row.
        for n_at_a_time in [VALUES_AT_A_TIME, 300_050, 1] {
            let mut session =
                build_session(&encode_copy(), None, &options, Provider::Cpu, None).expect("run `make ort`");
            let arena = Allocator::new(&session, memory_of(Provider::Cpu).expect("a description")).expect("an arena");
            let before = statistics(&arena).expect("statistics").in_use;
            let table = copied(&values, 1000, n_at_a_time, &mut session, Provider::Cpu).expect("a copy");
            let (shape, copy) = table.try_extract_tensor::<f32>().expect("floats");
            assert_eq!(&**shape, [1000, 1000]);
            assert!(copy == values, "{n_at_a_time} at a time");
            assert!(before + 4_000_000 <= statistics(&arena).expect("statistics").in_use);
        }
    }

    #[test]
    fn a_table_without_rows_is_a_table() {
        let options = SessionOptions { device: DeviceChoice::Cpu, ..SessionOptions::default() };
        let table = DeviceTable::copy(&[], 0, &options, Provider::Cpu).expect("run `make ort`");
        assert_eq!(table.tensor().shape().iter().product::<i64>(), 0);
    }
}
