//! A real server on a free port of this process, and a client that asks it.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, OnceLock},
    thread::JoinHandle,
};

use equipoise::{
    batcher::Backbone,
    config::{Config, ServeOptions},
    http::Phase,
    onnx::{DeviceMemory, Features, OnnxError},
    registry::{ModelDirectory, load_model_with},
    server::{Listeners, Server, ServerError, load_options},
};
use reqwest::{
    Body, Method, RequestBuilder,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{oneshot, watch};

/// The admin token of every [`TestApp`].
pub(crate) const TOKEN: &str = "token-of-the-tests-0123456789";
/// C and D of icons30.
pub(crate) const CLASSES: usize = 30;
pub(crate) const DIM: usize = 96;

/// The repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The model that ships.
pub(crate) fn icons30() -> PathBuf {
    root().join("models/icons30")
}

/// A test image of icons30, as a file's bytes.
pub(crate) fn image(label: &str, index: usize) -> Vec<u8> {
    std::fs::read(icons30().join(format!("test/{label}/{index:02}.png"))).unwrap()
}

/// A copy of icons30's model directory, without its images, to be changed.
pub(crate) fn copy_of_icons30() -> TempDir {
    let copy = TempDir::new().unwrap();
    std::fs::create_dir(copy.path().join("heads")).unwrap();
    for file in ["model.toml", "backbone.onnx", "labels.txt", "train_counts.csv"] {
        std::fs::copy(icons30().join(file), copy.path().join(file)).unwrap();
    }
    for head in ["joint", "crt", "lws", "ncm"] {
        let file = format!("heads/{head}.safetensors");
        std::fs::copy(icons30().join(&file), copy.path().join(&file)).unwrap();
    }
    copy
}

/// What a [`TestApp`] is started with.
#[derive(Clone)]
pub(crate) struct Setup {
    models: Vec<PathBuf>,
    /// Where it keeps its state; kept as long as somebody holds the setup or the app.
    pub(crate) state: Arc<TempDir>,
    token_file: bool,
    configure: Arc<dyn Fn(&mut Config) + Send + Sync>,
}

impl Setup {
    /// icons30 on one session and one thread, a fresh state directory, the known token.
    pub(crate) fn new() -> Self {
        Self {
            models: vec![icons30()],
            state: Arc::new(TempDir::new().unwrap()),
            token_file: true,
            configure: Arc::new(|_| ()),
        }
    }

    pub(crate) fn models(mut self, models: &[&Path]) -> Self {
        self.models = models.iter().map(|path| path.to_path_buf()).collect();
        self
    }

    /// Lets the server make a token of its own.
    pub(crate) fn own_token(mut self) -> Self {
        self.token_file = false;
        self
    }

    pub(crate) fn config(mut self, configure: impl Fn(&mut Config) + Send + Sync + 'static) -> Self {
        self.configure = Arc::new(configure);
        self
    }

    pub(crate) fn resolve(&self) -> Config {
        let token_file = self.state.path().join("token-of-the-operator");
        std::fs::write(&token_file, format!("{TOKEN}\n")).unwrap();
        let one = std::num::NonZeroUsize::new(1);
        let mut options = ServeOptions::default();
        options.models.clone_from(&self.models);
        options.state_dir = Some(self.state.path().to_owned());
        options.device = Some("cpu".parse().unwrap());
        (options.sessions, options.threads, options.decode_threads) = (one, one, Some(0));
        options.admin_token_file = self.token_file.then_some(token_file);
        let mut config = options.resolve().unwrap();
        (self.configure)(&mut config);
        config
    }

    /// A server that is to be loaded.
    pub(crate) fn server(&self) -> Result<Server, ServerError> {
        Server::new(self.resolve())
    }

    /// Listens, and has loaded nothing.
    pub(crate) fn listen(&self) -> TestApp {
        TestApp::listen(self, self.server().unwrap())
    }

    /// A server that is ready.
    pub(crate) fn start(&self) -> TestApp {
        let app = self.listen();
        app.server.load().unwrap();
        app
    }

    /// A server that is ready and whose one backbone does what the stand-in says. It keeps no heads.
    pub(crate) fn start_with(&self, stand_in: &StandIn) -> TestApp {
        let app = self.listen();
        equipoise::onnx::init(None).unwrap();
        let config = self.resolve();
        let options = load_options(&config, Arc::clone(&app.server.app().metrics), None).unwrap();
        let directory = ModelDirectory::read(&config.models[0]).unwrap();
        let around = {
            let stand_in = stand_in.clone();
            move |backbone| stand_in.around(backbone)
        };
        let model = load_model_with(&directory, &options, around).unwrap();
        app.server.app().registry.fill(vec![Arc::new(model)]);
        app.server.app().enter(Phase::Ready);
        app
    }
}

/// A running server. Dropping it shuts it down and waits for its end.
pub(crate) struct TestApp {
    /// `http://127.0.0.1:PORT`
    pub(crate) url: String,
    /// The same of the listener of the admin API, if it has its own.
    pub(crate) admin_url: Option<String>,
    pub(crate) server: Arc<Server>,
    client: reqwest::Client,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    _state: Arc<TempDir>,
}

/// A client without proxies. Without a pool, so that tests with runtimes of their own can share it.
fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap()
}

/// A client that keeps its connections, for many requests on one runtime.
pub(crate) fn pooled_client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// A server with icons30 that tests share and do not change.
pub(crate) fn shared() -> &'static TestApp {
    static SHARED: OnceLock<TestApp> = OnceLock::new();
    SHARED.get_or_init(|| Setup::new().start())
}

impl TestApp {
    fn listen(setup: &Setup, server: Server) -> Self {
        let server = Arc::new(server);
        let has_admin = setup.resolve().admin_listen.is_some();
        let (stop, stopped) = oneshot::channel();
        let (send_url, url) = std::sync::mpsc::channel();
        let thread = std::thread::spawn({
            let server = Arc::clone(&server);
            move || {
                let runtime =
                    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
                runtime.block_on(async {
                    let bind = || tokio::net::TcpListener::bind("127.0.0.1:0");
                    let public = bind().await.unwrap();
                    let admin = if has_admin { Some(bind().await.unwrap()) } else { None };
                    let url = |listener: &tokio::net::TcpListener| format!("http://{}", listener.local_addr().unwrap());
                    send_url.send((url(&public), admin.as_ref().map(url))).unwrap();
                    server.serve(Listeners { public, admin }, async { drop(stopped.await) }).await;
                });
            }
        });
        let (url, admin_url) = url.recv().unwrap();
        let state = Arc::clone(&setup.state);
        Self { url, admin_url, server, client: client(), stop: Some(stop), thread: Some(thread), _state: state }
    }

    /// Tells it to shut down, as a signal does.
    pub(crate) fn begin_shutdown(&mut self) {
        if let Some(stop) = self.stop.take() {
            // It may have ended already.
            let _ = stop.send(());
        }
    }

    /// Shuts it down and waits for its end.
    pub(crate) fn shutdown(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.begin_shutdown();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    pub(crate) fn request(&self, method: &str, path: &str) -> RequestBuilder {
        self.client.request(Method::from_bytes(method.as_bytes()).unwrap(), format!("{}{path}", self.url))
    }

    pub(crate) fn post(&self, path: &str) -> RequestBuilder {
        self.request("POST", path)
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        send(self.request("GET", path)).await
    }

    /// With the admin token.
    pub(crate) fn admin(&self, method: &str, path: &str) -> RequestBuilder {
        self.request(method, &format!("/admin/v1/models/icons30/{path}")).bearer_auth(TOKEN)
    }

    /// Classifies one image of icons30.
    pub(crate) async fn classify(&self, query: &str, body: impl Into<Body>) -> Answer {
        send(self.post(&format!("/v1/models/icons30/classify{query}")).body(body)).await
    }

    /// Classifies feature rows on icons30.
    pub(crate) async fn classify_features(&self, query: &str, rows: &[Vec<f32>]) -> Answer {
        let body = serde_json::json!({ "features": rows });
        send(self.post(&format!("/v1/models/icons30/classify{query}")).json(&body)).await
    }

    pub(crate) async fn patch(&self, head: &str, body: Value) -> Answer {
        send(self.admin("PATCH", &format!("heads/{head}")).json(&body)).await
    }

    pub(crate) async fn put_head(&self, head: &str, file: Vec<u8>) -> Answer {
        let request = self.admin("PUT", &format!("heads/{head}"));
        send(request.header("content-type", "application/octet-stream").body(file)).await
    }

    pub(crate) async fn derive_head(&self, head: &str, body: Value) -> Answer {
        send(self.admin("PUT", &format!("heads/{head}")).json(&body)).await
    }

    pub(crate) async fn delete_head(&self, head: &str) -> Answer {
        send(self.admin("DELETE", &format!("heads/{head}"))).await
    }

    pub(crate) async fn activate(&self, body: Value) -> Answer {
        send(self.admin("PUT", "default-head").json(&body)).await
    }

    /// The samples of `/metrics`.
    pub(crate) async fn metrics(&self) -> Samples {
        Samples(self.get("/metrics").await.expect(200).text())
    }

    /// Asks for the metrics until `wanted` holds of them.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&Samples) -> bool) {
        let ask = async { while !wanted(&self.metrics().await) {} };
        guard(what, ask).await;
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

/// Fails where a test would hang for ever.
pub(crate) async fn guard<T>(what: &str, future: impl Future<Output = T>) -> T {
    let limit = std::time::Duration::from_secs(120);
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("hangs: {what}"))
}

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

pub(crate) async fn send(request: RequestBuilder) -> Answer {
    try_send(request).await.unwrap()
}

pub(crate) async fn try_send(request: RequestBuilder) -> reqwest::Result<Answer> {
    let response = guard("a request", request.send()).await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Ok(Answer { status, headers, body: guard("an answer's body", response.bytes()).await?.to_vec() })
}

impl Answer {
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .get(HeaderName::from_bytes(name.as_bytes()).unwrap())
            .map(|value: &HeaderValue| value.to_str().unwrap())
    }

    /// Checks that this is a problem of that status and code, in the form of RFC 9457 and with the headers that belong to
    /// the status; gives its detail.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status, status, "expected {code}: {}", self.text());
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        assert!(self.header("x-request-id").is_some());
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status);
        for field in ["type", "title", "detail"] {
            assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{field} of {problem}");
        }
        assert_eq!(problem.as_object().unwrap().len(), 5, "{problem}");
        let is_for_now = [429, 503].contains(&status);
        assert_eq!(self.header("retry-after").is_some(), is_for_now);
        if is_for_now {
            assert!(self.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
        }
        assert_eq!(self.header("www-authenticate"), (status == 401).then_some("Bearer"));
        assert!(status != 405 || self.header("allow").is_some());
        problem["detail"].as_str().unwrap().to_owned()
    }

    /// The results of image `image`, one for each head.
    #[track_caller]
    pub(crate) fn results(&self, image: usize) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()["images"][image]["results"].as_array().unwrap().clone()
    }

    /// The predictions of the only head.
    #[track_caller]
    pub(crate) fn predictions(&self, image: usize) -> Vec<Value> {
        let results = self.results(image);
        assert_eq!(results.len(), 1);
        results[0]["predictions"].as_array().unwrap().clone()
    }

    #[track_caller]
    pub(crate) fn n_images(&self) -> usize {
        self.json()["images"].as_array().unwrap().len()
    }
}

/// The text of `/metrics`.
#[derive(Debug)]
pub(crate) struct Samples(pub(crate) String);

impl Samples {
    /// The value of the sample with exactly these labels, written as in the text; 0 if it is not there.
    pub(crate) fn get(&self, sample: &str) -> f64 {
        let value = self.0.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// The names of the families.
    pub(crate) fn families(&self) -> Vec<&str> {
        self.0.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
    }

    /// Every value of every label, with its name.
    pub(crate) fn labels(&self) -> Vec<(String, String)> {
        let braces = self.0.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (open, close) = (line.find('{')?, line.rfind('}')?);
            line.get(open + 1..close)
        });
        let pairs =
            braces.flat_map(|labels| labels.split("\",").map(|pair| pair.trim_end_matches('"').split_once("=\"")));
        pairs.flatten().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }
}

/// The body of a multipart request with these files, and its content type.
pub(crate) fn multipart(files: &[Vec<u8>]) -> (String, Vec<u8>) {
    let boundary = "a-boundary-of-the-tests";
    let mut body = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let mut head = String::new();
        write!(head, "--{boundary}\r\ncontent-disposition: form-data; name=\"{index}\"; filename=\"{index}.png\"\r\n")
            .unwrap();
        write!(head, "content-type: image/png\r\n\r\n").unwrap();
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(file);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    (format!("multipart/form-data; boundary={boundary}"), body)
}

/// What happens in a run of a backbone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The numbers are no features.
    Fail,
    /// The session is broken, and stays so until another one is made.
    Break,
    /// The same, but for single images.
    BreakBatches,
    Panic,
}

/// The other end of a backbone that a test holds, counts or lets fail.
#[derive(Clone)]
pub(crate) struct StandIn {
    orders: Arc<(Mutex<Orders>, Condvar)>,
    begun: Arc<watch::Sender<usize>>,
}

#[derive(Default)]
struct Orders {
    held: bool,
    /// The number of a run, from 1, and what happens in it.
    fault: Option<(usize, Fault)>,
    /// Images for which the device has memory.
    largest_batch: Option<usize>,
    /// The network takes no image with fewer rows.
    smallest_image: usize,
    device_memory: Option<DeviceMemory>,
    /// Images of each run so far.
    runs: Vec<usize>,
    /// Of these, the ones that were to spare memory.
    sparing_runs: Vec<usize>,
}

impl StandIn {
    pub(crate) fn new() -> Self {
        Self { orders: Arc::default(), begun: Arc::new(watch::channel(0).0) }
    }

    /// From now on every run waits.
    pub(crate) fn hold(&self) {
        self.orders.0.lock().unwrap().held = true;
    }

    pub(crate) fn release(&self) {
        self.orders.0.lock().unwrap().held = false;
        self.orders.1.notify_all();
    }

    /// What run `number`, from 1, does instead of its work.
    pub(crate) fn in_run(&self, number: usize, fault: Fault) {
        self.orders.0.lock().unwrap().fault = Some((number, fault));
    }

    /// From now on a batch of more images runs out of memory.
    pub(crate) fn has_memory_for(&self, largest_batch: usize) {
        self.orders.0.lock().unwrap().largest_batch = Some(largest_batch);
    }

    /// From now on an image with fewer rows is too small for the network.
    pub(crate) fn takes_from(&self, smallest_image: usize) {
        self.orders.0.lock().unwrap().smallest_image = smallest_image;
    }

    /// What it says to hold on its device.
    pub(crate) fn holds(&self, held: DeviceMemory) {
        self.orders.0.lock().unwrap().device_memory = Some(held);
    }

    /// Images of each run that has begun.
    pub(crate) fn runs(&self) -> Vec<usize> {
        self.orders.0.lock().unwrap().runs.clone()
    }

    /// Images of each run that was to spare memory.
    pub(crate) fn sparing_runs(&self) -> Vec<usize> {
        self.orders.0.lock().unwrap().sparing_runs.clone()
    }

    /// Waits until `n` runs have begun.
    pub(crate) async fn begun(&self, n: usize) {
        let mut begun = self.begun.subscribe();
        guard("a run of the backbone", begun.wait_for(|runs| *runs >= n)).await.unwrap();
    }

    fn around(&self, inner: Box<dyn Backbone>) -> Box<dyn Backbone> {
        /// The last is the largest batch that still works, if the session is broken.
        struct Held(Box<dyn Backbone>, StandIn, Option<usize>);
        impl Backbone for Held {
            fn device_memory(&self) -> Option<DeviceMemory> {
                self.1.orders.0.lock().unwrap().device_memory
            }

            fn run_sparing(&mut self, pixels: &[f32], n: usize, h: usize, w: usize) -> Result<Features, OnnxError> {
                self.1.orders.0.lock().unwrap().sparing_runs.push(n);
                self.run(pixels, n, h, w)
            }

            fn run(&mut self, pixels: &[f32], n: usize, height: usize, width: usize) -> Result<Features, OnnxError> {
                let (orders, changed) = &*self.1.orders;
                let mut orders = orders.lock().unwrap();
                orders.runs.push(n);
                let number = orders.runs.len();
                self.1.begun.send_replace(number);
                while orders.held {
                    orders = changed.wait(orders).unwrap();
                }
                if orders.largest_batch.is_some_and(|largest| largest < n) {
                    let words = "Failed to allocate memory for requested buffer of size 643840";
                    return Err(OnnxError::Run { n, source: ort::Error::new(words) });
                }
                if height < orders.smallest_image {
                    let words = "Non-zero status code returned while running Conv node";
                    return Err(OnnxError::Run { n, source: ort::Error::new(words) });
                }
                let fault = orders.fault.filter(|(run, _)| *run == number).map(|(_, fault)| fault);
                drop(orders);
                match fault {
                    Some(Fault::Break) => self.2 = Some(0),
                    Some(Fault::BreakBatches) => self.2 = Some(1),
                    Some(Fault::Fail) => return Features::from_host(vec![f32::NAN; n * DIM], n, DIM),
                    Some(Fault::Panic) => panic!("the backbone panics, as the test told it to"),
                    None => {}
                }
                if self.2.is_some_and(|largest| largest < n) {
                    return Err(OnnxError::OutputShape { found: vec![], n, feature_dim: DIM });
                }
                self.0.run(pixels, n, height, width)
            }
        }
        Box::new(Held(inner, self.clone(), None))
    }
}
