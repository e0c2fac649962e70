//! Models made here: a backbone that computes next to nothing, heads of random weights, copies under other names.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use equipoise::heads::{FORMAT, TensorView, write_safetensors};
use tempfile::TempDir;
use toml::{Table, Value};

/// The images that [`backbone`] takes.
const SIDE: usize = 8;

/// How many heads a made model has: `joint`, `own-1`, `own-2`... with weights of their own, and `tau-0`, `tau-1`... which
/// share those of `joint`.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) own: usize,
    pub(crate) taus: usize,
}

impl Heads {
    /// The names of those with weights of their own.
    pub(crate) fn own_names(self) -> Vec<String> {
        (0..self.own).map(|index| if index == 0 { "joint".to_owned() } else { format!("own-{index}") }).collect()
    }

    /// The names of those that share.
    pub(crate) fn tau_names(self) -> Vec<String> {
        (0..self.taus).map(|index| format!("tau-{index}")).collect()
    }

    /// The table `[heads]`; writes the files that it names.
    fn write(self, folder: &Path, n_classes: usize, feature_dim: usize) -> Table {
        std::fs::create_dir(folder.join("heads")).unwrap();
        let mut heads = table([("default", "joint".into())]);
        for (seed, name) in self.own_names().into_iter().enumerate() {
            let file = format!("heads/{name}.safetensors");
            std::fs::write(folder.join(&file), head_file(n_classes, feature_dim, seed as u32)).unwrap();
            heads.insert(name, table([("file", file.into())]).into());
        }
        for (index, name) in self.tau_names().into_iter().enumerate() {
            let tau = (index + 1) as f64 / self.taus as f64;
            let head = [("kind", "tau_norm".into()), ("base", "joint".into()), ("tau", tau.into())];
            heads.insert(name, table(head).into());
        }
        heads
    }
}

/// A model whose backbone gives the pixels of a small image, over and over.
pub(crate) struct MadeModel {
    pub(crate) name: &'static str,
    pub(crate) feature_dim: usize,
    pub(crate) n_classes: usize,
    pub(crate) heads: Heads,
}

impl MadeModel {
    pub(crate) fn write(&self) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path();
        std::fs::write(folder.join("backbone.onnx"), backbone(self.feature_dim)).unwrap();
        let labels: String = (0..self.n_classes).map(|class| format!("class {class}\n")).collect();
        std::fs::write(folder.join("labels.txt"), labels).unwrap();
        let (size, half) = (vec![SIDE as i64; 2], vec![0.5; 3]);
        let preprocess = [
            ("resize", size.into()),
            ("interpolation", "nearest".into()),
            ("mean", half.clone().into()),
            ("std", half.into()),
        ];
        let model = table([
            ("name", self.name.into()),
            ("backbone", "backbone.onnx".into()),
            ("preprocess", table(preprocess).into()),
            ("classes", table([("labels", "labels.txt".into())]).into()),
            ("heads", self.heads.write(folder, self.n_classes, self.feature_dim).into()),
        ]);
        write_toml(folder, &model);
        directory
    }
}

/// The model of a directory with other heads, of random weights.
pub(crate) fn with_heads(model: &Path, (n_classes, feature_dim): (usize, usize), heads: Heads) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut table = read_toml(model);
    table.insert("heads".to_owned(), heads.write(directory.path(), n_classes, feature_dim).into());
    write_toml(directory.path(), &table);
    directory
}

/// So many copies of a model, as `NAME-0`, `NAME-1`...
pub(crate) fn copies(model: &Path, n: usize) -> Vec<(String, TempDir)> {
    let copy = |index: usize| {
        let directory = tempfile::tempdir().unwrap();
        let mut table = read_toml(model);
        let name = format!("{}-{index}", table["name"].as_str().unwrap());
        table.insert("name".to_owned(), name.as_str().into());
        // Files of their own: pages of a file that several map would count once.
        std::fs::create_dir(directory.path().join("heads")).unwrap();
        let heads = std::fs::read_dir(model.join("heads")).unwrap().map(|file| file.unwrap().path());
        for from in heads.chain([PathBuf::from(table["backbone"].as_str().unwrap())]) {
            let to = directory.path().join(from.strip_prefix(std::path::absolute(model).unwrap()).unwrap());
            std::fs::copy(from, to).unwrap();
        }
        table.insert("backbone".to_owned(), "backbone.onnx".into());
        write_toml(directory.path(), &table);
        (name, directory)
    };
    (0..n).map(copy).collect()
}

/// `model.toml`, which finds the backbone, the labels and the counts from everywhere.
fn read_toml(model: &Path) -> Table {
    let mut table: Table = toml::from_str(&std::fs::read_to_string(model.join("model.toml")).unwrap()).unwrap();
    let absolute = |value: &mut Value| {
        let path = std::path::absolute(model.join(value.as_str().unwrap())).unwrap();
        *value = path.to_str().unwrap().into();
    };
    absolute(&mut table["backbone"]);
    table["classes"].as_table_mut().unwrap().iter_mut().for_each(|(_, file)| absolute(file));
    table
}

fn write_toml(folder: &Path, model: &Table) {
    std::fs::write(folder.join("model.toml"), toml::to_string(model).unwrap()).unwrap();
}

fn table<const N: usize>(entries: [(&str, Value); N]) -> Table {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// A joint head of random weights.
fn head_file(n_classes: usize, feature_dim: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.1
    };
    let weight: Vec<f32> = (0..n_classes * feature_dim).map(|_| random()).collect();
    let bias: Vec<f32> = (0..n_classes).map(|_| random()).collect();
    let metadata = [
        ("format", FORMAT.to_owned()),
        ("kind", "joint".to_owned()),
        ("classes", n_classes.to_string()),
        ("feature_dim", feature_dim.to_string()),
    ];
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let tensors = BTreeMap::from([
        ("weight".to_owned(), TensorView::F32(&weight, vec![n_classes, feature_dim])),
        ("bias".to_owned(), TensorView::F32(&bias, vec![n_classes])),
    ]);
    let mut file = Vec::new();
    write_safetensors(&mut file, &metadata, &tensors).unwrap();
    file
}

/// An ONNX file: the pixels of an image of 8 x 8 again and again, as many as there are features.
fn backbone(feature_dim: usize) -> Vec<u8> {
    // Numbers of fields are those of `onnx.proto`; of types 1 is float32 and 7 is int64.
    let n_repeats = feature_dim.div_ceil(3 * SIDE * SIDE) as i64;
    let constant = |name: &str, values: &[i64]| {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Message::default().number(1, values.len()).number(2, 7).bytes(8, name).bytes(9, bytes)
    };
    let node = |op: &str, inputs: &[&str], output: &str| {
        let node = inputs.iter().fold(Message::default(), |node, input| node.bytes(1, input));
        node.bytes(2, output).bytes(3, output).bytes(4, op)
    };
    let float32 = |name: &str, dims: &[usize]| {
        let batch = Message::default().message(1, Message::default().bytes(2, "N"));
        let shape = dims.iter().fold(batch, |shape, &dim| shape.message(1, Message::default().number(1, dim)));
        let tensor = Message::default().number(1, 1).message(2, shape);
        Message::default().bytes(1, name).message(2, Message::default().message(1, tensor))
    };
    let graph = Message::default()
        .message(1, node("Flatten", &["image"], "flat"))
        .message(1, node("Tile", &["flat", "repeats"], "tiled"))
        .message(1, node("Slice", &["tiled", "starts", "ends", "axes"], "features"))
        .bytes(2, "pixels")
        .message(5, constant("repeats", &[1, n_repeats]))
        .message(5, constant("starts", &[0]))
        .message(5, constant("ends", &[feature_dim as i64]))
        .message(5, constant("axes", &[1]))
        .message(11, float32("image", &[3, SIDE, SIDE]))
        .message(12, float32("features", &[feature_dim]));
    // Opset 13 of IR version 7.
    Message::default().number(1, 7).message(7, graph).message(8, Message::default().number(2, 13)).0
}

/// A message of protobuf, field by field.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(mut self, mut value: usize) -> Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn number(self, field: usize, value: usize) -> Self {
        self.varint(field << 3).varint(value)
    }

    fn bytes(self, field: usize, bytes: impl AsRef<[u8]>) -> Self {
        let mut message = self.varint(field << 3 | 2).varint(bytes.as_ref().len());
        message.0.extend_from_slice(bytes.as_ref());
        message
    }

    fn message(self, field: usize, message: Self) -> Self {
        self.bytes(field, message.0)
    }
}
