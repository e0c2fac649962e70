//! What is fuzzed: every way in for bytes that nobody has looked at.
//!
//! Each function takes any bytes, must not panic, and checks what it accepts. `cargo fuzz` drives them with bytes that reach
//! further and further; the tests of the server replay the corpus and some mutations of it.

use std::{
    io::{Cursor, Write},
    path::Path,
    sync::OnceLock,
};

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use equipoise::{
    config::ServeOptions,
    dataset::FeatureSet,
    heads::{HeadFile, Scores},
    onnx::cut_classifier,
    preprocess::{Crop, Decode, DecodeLimits, ExifOrientation, Interpolation, PreprocessConfig, Preprocessor, Resize},
    server::Server,
};
use tempfile::{NamedTempFile, TempDir};
use tower::ServiceExt;

/// An image file of any format becomes a tensor of the size that was asked for, every value finite, or an error.
pub fn image(bytes: &[u8]) {
    static PREPROCESSOR: OnceLock<Preprocessor> = OnceLock::new();
    let preprocessor = PREPROCESSOR.get_or_init(|| {
        let config = PreprocessConfig {
            pre_crop: None,
            resize: Some(Resize::ShorterSide(18)),
            crop: Some(Crop::Square(16)),
            interpolation: Interpolation::Bilinear,
            mean: [0.5; 3],
            std: [0.25; 3],
            exif_orientation: ExifOrientation::Apply,
            decode: Decode::Exact,
        };
        // Small enough that a large picture is refused, and not decoded for seconds.
        let limits = DecodeLimits { max_pixels: 1 << 18, max_alloc_bytes: 1 << 24, ..DecodeLimits::default() };
        Preprocessor::new(config, limits).expect("the configuration is right")
    });
    if let Ok(tensor) = preprocessor.run(bytes) {
        assert_eq!((tensor.height, tensor.width, tensor.pixels.len()), (16, 16, 3 * 16 * 16));
        assert!(tensor.pixels.iter().all(|value| (-2.0..=2.0).contains(value)));
    }
}

/// A feature set, npz or safetensors, is whole and finite, or an error that takes no more memory than was allowed.
pub fn features(bytes: &[u8]) {
    let mut file = NamedTempFile::new().expect("a temporary file");
    file.write_all(bytes).expect("it is written");
    // A file is mapped where it can be.
    let of_file = FeatureSet::read(file.path(), None, 1 << 20);
    let of_bytes = FeatureSet::read_from(Cursor::new(bytes), None, 1 << 20);
    for set in [of_file, of_bytes].into_iter().flatten() {
        assert_eq!(set.features().dim(), (set.num_rows(), set.feature_dim()));
        assert_eq!(set.class_counts().iter().sum::<u64>(), set.num_rows() as u64);
        assert_eq!(set.labels().len(), set.num_rows());
        assert!(set.features().iter().all(|value| value.is_finite()));
        assert!(set.labels().iter().all(|&label| (label as usize) < set.num_classes()));
    }
}

/// A head file becomes a head that scores, or an error.
pub fn head_file(bytes: &[u8]) {
    let Ok(HeadFile { head, .. }) = HeadFile::parse(bytes) else { return };
    let scoring = head.scoring(head.initial_settings());
    let raw = vec![0.5; head.num_classes()];
    let mut logits = Vec::new();
    if let Some(best) = scoring.predict(Scores { raw: &raw, squared_norm: 1.0 }, 5, &mut logits) {
        assert_eq!(best.len(), scoring.num_unmasked().min(5));
        assert!(best.iter().all(|best| (0.0..=1.000_001).contains(&best.probability)), "{best:?}");
        assert_eq!(best.first().is_some_and(|best| best.class < raw.len()), !best.is_empty());
    }
}

/// A classifier is cut in two parts that fit together, or an error says why not.
pub fn onnx_import(bytes: &[u8]) {
    if let Ok(cut) = cut_classifier(bytes.to_vec(), None) {
        assert_eq!(cut.weight.len(), cut.num_classes * cut.feature_dim);
        assert!(cut.bias.is_none_or(|bias| bias.len() == cut.num_classes));
    }
}

/// Calls that read a body, with the content type that the second byte picks.
const CALLS: [(&str, &str); 8] = [
    ("POST", "/v1/classify"),
    ("POST", "/v1/classify?head=joint,tau&top_k=3&tau=0.5"),
    ("POST", "/v1/models/icons30/features"),
    ("PATCH", "/admin/v1/models/icons30/heads/tau"),
    ("PUT", "/admin/v1/models/icons30/heads/fuzzed"),
    ("PUT", "/admin/v1/models/icons30/default-head"),
    ("POST", "/admin/v1/models/icons30/fits"),
    ("POST", "/admin/v1/models/icons30/heads/tau/evaluate"),
];

const CONTENT_TYPES: [&str; 5] = [
    "application/json",
    "multipart/form-data; boundary=b",
    "application/octet-stream",
    "image/png",
    "application/x-www-form-urlencoded",
];

const TOKEN: &str = "token-of-the-fuzzer-0123456789";

struct Fuzzed {
    router: axum::Router,
    runtime: tokio::runtime::Runtime,
    _state: TempDir,
}

impl Fuzzed {
    /// A server with icons30, which answers on no port.
    fn start() -> Self {
        let state = TempDir::new().expect("a temporary folder");
        let token_file = state.path().join("token");
        std::fs::write(&token_file, TOKEN).expect("a file in it");
        let one = std::num::NonZeroUsize::new(1);
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find(|path| path.join("models/icons30").is_dir());
        let mut options = ServeOptions::default();
        options.models = vec![root.expect("the repository").join("models/icons30")];
        options.state_dir = Some(state.path().join("state"));
        options.admin_token_file = Some(token_file);
        (options.sessions, options.threads, options.decode_threads) = (one, one, Some(0));
        let server = Server::new(options.resolve().expect("a configuration")).expect("a server");
        server.load().expect("the model that ships loads");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        Self { router: server.router(), runtime: runtime.expect("a runtime"), _state: state }
    }

    fn answer(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> StatusCode {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {TOKEN}"))
            .header(header::CONTENT_TYPE, content_type)
            .body(Body::from(body.to_vec()))
            .expect("a request");
        self.runtime.block_on(self.router.clone().oneshot(request)).expect("it is infallible").status()
    }
}

/// A body is answered, whatever it is, and with nothing that is our fault.
pub fn http_body(bytes: &[u8]) {
    static SERVER: OnceLock<Fuzzed> = OnceLock::new();
    let [call, content_type, body @ ..] = bytes else { return };
    let server = SERVER.get_or_init(Fuzzed::start);
    let (method, path) = CALLS[usize::from(*call) % CALLS.len()];
    let content_type = CONTENT_TYPES[usize::from(*content_type) % CONTENT_TYPES.len()];
    let status = server.answer(method, path, content_type, body);
    assert!(!status.is_server_error() || status == StatusCode::SERVICE_UNAVAILABLE, "{method} {path}: {status}");
    if status == StatusCode::CREATED {
        // Or the heads become more and more.
        assert_eq!(server.answer("DELETE", path, content_type, b""), StatusCode::NO_CONTENT);
    }
}
