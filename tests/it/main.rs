//! The one integration binary.

mod onnx;
mod onnx_cut;
mod onnx_library;
mod onnx_scorer;
mod onnx_session;
