//! Whether CUDA works here.

use std::sync::OnceLock;

use ort::ep::{self, ExecutionProvider};
use ort::value::TensorRef;

use super::build::build_session;
use super::device::{Provider, SessionOptions};
use super::error::OnnxError;
use super::head_graph::{constant, model_bytes, node, value_info};
use super::proto::GraphProto;
use super::session::tell_fallback;

/// Whether CUDA runs a convolution on the first device. It is tried once in a process: a library that was built for CUDA knows
/// the provider everywhere, also without a device, a driver or NVIDIA's libraries, and looks for cuDNN at the first convolution.
pub(super) fn cuda_works() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    // A library built without CUDA is the normal case: it is not worth a failed attempt and a warning.
    if !ep::CUDA::is_available().unwrap_or(false) {
        return false;
    }
    *WORKS.get_or_init(|| {
        let provider = Provider::Cuda { index: 0 };
        prove(provider).map_err(|error| tell_fallback(provider, &error)).is_ok()
    })
}

/// Convolves one pixel.
fn prove(provider: Provider) -> Result<(), OnnxError> {
    let model = model_bytes(GraphProto {
        name: Some("proof".to_owned()),
        node: vec![node("Conv", &["image", "kernel"], "features", &[])],
        initializer: vec![constant("kernel", &[1, 1, 1, 1], &[1.0])],
        input: vec![value_info("image", &[Some(1); 4])],
        output: vec![value_info("features", &[Some(1); 4])],
        ..GraphProto::default()
    });
    let options = SessionOptions { device: provider.into(), ..SessionOptions::default() };
    let mut session = build_session(&model, None, &options, provider, None)?;
    let run_error = |source| OnnxError::Run { n: 1, source };
    let image = TensorRef::from_array_view(([1_usize; 4], &[1.0_f32][..])).map_err(run_error)?;
    session.run(ort::inputs!["image" => image]).map(drop).map_err(run_error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::DeviceChoice;

    #[test]
    fn auto_expects_cuda_only_where_a_convolution_runs_there() {
        prove(Provider::Cpu).expect("a convolution on the CPU");
        let works = prove(Provider::Cuda { index: 0 }).is_ok();
        assert_eq!(DeviceChoice::Auto.expects_cuda(), works);
        assert!(
            DeviceChoice::Cuda { index: 0 }.expects_cuda(),
            "what is asked for is expected, and fails if it does not work"
        );
    }
}
