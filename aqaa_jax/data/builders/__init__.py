"""``tensorflow-datasets`` builders that make records, without TensorFlow: prepare, then ``as_data_source``."""
