//! The corners of the ONNX schema that image classifiers hardly use: training and distribution over devices.
//!
//! They are here for the reason given in [`proto`](super::proto): what is not declared would be lost.

use super::proto::{GraphProto, StringStringEntryProto};

/// How to train the model further.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct TrainingInfoProto {
    #[prost(message, optional, tag = "1")]
    pub initialization: Option<GraphProto>,
    #[prost(message, optional, tag = "2")]
    pub algorithm: Option<GraphProto>,
    #[prost(message, repeated, tag = "3")]
    pub initialization_binding: Vec<StringStringEntryProto>,
    #[prost(message, repeated, tag = "4")]
    pub update_binding: Vec<StringStringEntryProto>,
}

/// A set of devices that nodes may be spread over.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeviceConfigurationProto {
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    #[prost(int32, optional, tag = "2")]
    pub num_devices: Option<i32>,
    #[prost(string, repeated, tag = "3")]
    pub device: Vec<String>,
}

/// Where a node runs in one such configuration.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct NodeDeviceConfigurationProto {
    #[prost(string, optional, tag = "1")]
    pub configuration_id: Option<String>,
    #[prost(message, repeated, tag = "2")]
    pub sharding_spec: Vec<ShardingSpecProto>,
    #[prost(int32, optional, tag = "3")]
    pub pipeline_stage: Option<i32>,
}

/// How a tensor is spread.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ShardingSpecProto {
    #[prost(string, optional, tag = "1")]
    pub tensor_name: Option<String>,
    #[prost(int64, repeated, packed = "false", tag = "2")]
    pub device: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    pub index_to_device_group_map: Vec<IntIntListEntryProto>,
    #[prost(message, repeated, tag = "4")]
    pub sharded_dim: Vec<ShardedDimProto>,
}

/// A number and its list of numbers.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct IntIntListEntryProto {
    #[prost(int64, optional, tag = "1")]
    pub key: Option<i64>,
    #[prost(int64, repeated, packed = "false", tag = "2")]
    pub value: Vec<i64>,
}

/// One dimension of a tensor that is spread.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ShardedDimProto {
    #[prost(int64, optional, tag = "1")]
    pub axis: Option<i64>,
    #[prost(message, repeated, tag = "2")]
    pub simple_sharding: Vec<SimpleShardedDimProto>,
}

/// Into how many pieces.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SimpleShardedDimProto {
    #[prost(oneof = "super::proto::DimensionValue", tags = "1, 2")]
    pub dim: Option<super::proto::DimensionValue>,
    #[prost(int64, optional, tag = "3")]
    pub num_shards: Option<i64>,
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message;

    use crate::onnx::proto::{AttributeProto, ModelProto, NodeProto, SparseTensorProto};

    /// A model in which the onnx package has set every field that it knows, in messages within messages.
    const EVERY_FIELD: &[u8] = include_bytes!("../../tests/data/onnx/every_field.onnx");

    #[test]
    fn no_field_is_lost_by_reading_and_writing() {
        let model = ModelProto::decode(EVERY_FIELD).expect("the file is valid");
        let written = model.encode_to_vec();
        // The fields of a oneof may be written in another place: same length and same content is the same model.
        assert_eq!(written.len(), EVERY_FIELD.len());
        let [mut before, mut after] = [EVERY_FIELD.to_vec(), written.clone()];
        before.sort_unstable();
        after.sort_unstable();
        assert_eq!(before, after);
        assert_eq!(ModelProto::decode(&*written).expect("what was written can be read"), model);
    }

    #[test]
    fn values_are_parts_of_the_file_and_no_copies() {
        let file = Bytes::from_static(EVERY_FIELD);
        let graph = ModelProto::decode(file.clone()).expect("the file is valid").graph.expect("every field is there");
        let values = graph.initializer.first().and_then(|tensor| tensor.raw_data.clone()).expect("and its values");
        assert!(file.as_ptr_range().contains(&values.as_ptr()));
    }

    /// Each may be two bytes of a file, over and over.
    #[test]
    fn what_is_empty_takes_little_memory() {
        let sizes = [size_of::<AttributeProto>(), size_of::<NodeProto>(), size_of::<SparseTensorProto>()];
        assert!(sizes.iter().all(|&bytes| bytes <= 400), "{sizes:?}");
    }
}
