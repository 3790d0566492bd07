/* Asks a policy for actions from C: a SavedModel through TensorFlow's C API, nothing else.
 *
 *     policy MODEL_DIR [SIGNATURE [ROWS]]
 *
 * MODEL_DIR is one version (it holds saved_model.pb), SIGNATURE serving_default unless given. Every line of standard
 * input is one row: the numbers of all inputs, in alphabetical order of the inputs' names, separated by blanks. Every
 * line of the output is the answer to one, "name=number,number name=number". ROWS lines (1) go into one request.
 * Without a line on standard input it prints what the signature takes and gives.
 *
 * Exit status: 0, 1 when TensorFlow refuses something, 2 when it was called with something else.
 */

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"

enum { MAX_TENSORS = 32, MAX_RANK = 8, MAX_LINE = 1 << 22 };

/* One input or output of a signature. */
typedef struct {
  char name[128];      /* in the signature */
  char operation[256]; /* in the graph, "operation:index" taken apart */
  int index;
  TF_DataType dtype;
  int rank;
  int64_t dims[MAX_RANK]; /* dims[0] is the batch */
  int64_t size;           /* numbers in one row */
} Endpoint;

typedef struct {
  Endpoint inputs[MAX_TENSORS], outputs[MAX_TENSORS];
  int num_inputs, num_outputs;
} Signature;

static void fail(int status, const char* what, const char* why) {
  fprintf(stderr, "%s: %s\n", what, why);
  exit(status);
}

static void check(TF_Status* status, const char* what) {
  if (TF_GetCode(status) != TF_OK) fail(1, what, TF_Message(status));
}

/* ---- Reading protocol buffers: just enough to find a signature in a MetaGraphDef. ---- */

typedef struct {
  const uint8_t* data;
  const uint8_t* end;
} Bytes;

typedef struct {
  int number;
  uint64_t value; /* of a varint */
  Bytes bytes;    /* of a string or message */
} Field;

static uint64_t varint(Bytes* in) {
  uint64_t value = 0;
  for (int shift = 0; in->data < in->end && shift < 64; shift += 7) {
    uint8_t byte = *in->data++;
    value |= (uint64_t)(byte & 0x7f) << shift;
    if (!(byte & 0x80)) return value;
  }
  fail(1, "saved_model.pb", "is damaged");
  return 0;
}

static int next(Bytes* in, Field* field) {
  if (in->data >= in->end) return 0;
  uint64_t key = varint(in), length = 0;
  memset(field, 0, sizeof(*field));
  field->number = (int)(key >> 3);
  switch (key & 7) {
    case 0: field->value = varint(in); return 1;
    case 1: length = 8; break;
    case 2: length = varint(in); break;
    case 5: length = 4; break;
    default: fail(1, "saved_model.pb", "is damaged");
  }
  if (length > (uint64_t)(in->end - in->data)) fail(1, "saved_model.pb", "is damaged");
  field->bytes.data = in->data;
  field->bytes.end = in->data += length;
  return 1;
}

static void text(Bytes bytes, char* to, size_t room) {
  size_t length = (size_t)(bytes.end - bytes.data);
  if (length >= room) fail(1, "saved_model.pb", "has a name that is too long");
  memcpy(to, bytes.data, length);
  to[length] = 0;
}

/* message TensorInfo { string name = 1; DataType dtype = 2; TensorShapeProto tensor_shape = 3; } */
static void read_endpoint(Bytes in, Endpoint* endpoint) {
  Field field, part, size;
  while (next(&in, &field)) {
    if (field.number == 1) {
      text(field.bytes, endpoint->operation, sizeof(endpoint->operation));
      char* colon = strrchr(endpoint->operation, ':');
      if (colon) {
        endpoint->index = atoi(colon + 1);
        *colon = 0;
      }
    } else if (field.number == 2) {
      endpoint->dtype = (TF_DataType)field.value;
    } else if (field.number == 3) {
      while (next(&field.bytes, &part)) {
        if (part.number != 2) continue; /* repeated Dim { int64 size = 1; } dim = 2 */
        if (endpoint->rank == MAX_RANK) fail(1, endpoint->name, "has too many axes");
        int64_t* dim = &endpoint->dims[endpoint->rank++];
        *dim = 0;
        while (next(&part.bytes, &size)) {
          if (size.number == 1) *dim = (int64_t)size.value;
        }
      }
    }
  }
  endpoint->size = 1;
  for (int axis = 1; axis < endpoint->rank; ++axis) endpoint->size *= endpoint->dims[axis];
}

static int by_name(const void* a, const void* b) {
  return strcmp(((const Endpoint*)a)->name, ((const Endpoint*)b)->name);
}

/* message SignatureDef { map<string, TensorInfo> inputs = 1; map<string, TensorInfo> outputs = 2; } */
static void read_signature(Bytes in, Signature* signature) {
  Field field, part;
  while (next(&in, &field)) {
    if (field.number != 1 && field.number != 2) continue;
    int* count = field.number == 1 ? &signature->num_inputs : &signature->num_outputs;
    if (*count == MAX_TENSORS) fail(1, "saved_model.pb", "has too many inputs or outputs");
    Endpoint* endpoint = (field.number == 1 ? signature->inputs : signature->outputs) + (*count)++;
    while (next(&field.bytes, &part)) {
      if (part.number == 1) text(part.bytes, endpoint->name, sizeof(endpoint->name));
      if (part.number == 2) read_endpoint(part.bytes, endpoint);
    }
  }
  qsort(signature->inputs, signature->num_inputs, sizeof(Endpoint), by_name);
  qsort(signature->outputs, signature->num_outputs, sizeof(Endpoint), by_name);
}

/* message MetaGraphDef { map<string, SignatureDef> signature_def = 5; } */
static void find_signature(const TF_Buffer* meta_graph, const char* wanted, Signature* signature) {
  const uint8_t* data = meta_graph->data;
  Bytes in = {data, data + meta_graph->length};
  Field field, part;
  while (next(&in, &field)) {
    if (field.number != 5) continue;
    char name[256] = "";
    Bytes definition = {0, 0};
    while (next(&field.bytes, &part)) {
      if (part.number == 1) text(part.bytes, name, sizeof(name));
      if (part.number == 2) definition = part.bytes;
    }
    if (!strcmp(name, wanted)) {
      read_signature(definition, signature);
      return;
    }
  }
  fail(2, wanted, "the model has no such signature");
}

/* ---- Numbers as text. ---- */

static void put(TF_DataType dtype, void* data, int64_t at, const char* word, char** end) {
  switch (dtype) {
    case TF_FLOAT: ((float*)data)[at] = strtof(word, end); break;
    case TF_DOUBLE: ((double*)data)[at] = strtod(word, end); break;
    case TF_INT64: ((int64_t*)data)[at] = strtoll(word, end, 10); break;
    case TF_INT32: ((int32_t*)data)[at] = (int32_t)strtol(word, end, 10); break;
    case TF_INT16: ((int16_t*)data)[at] = (int16_t)strtol(word, end, 10); break;
    case TF_INT8: ((int8_t*)data)[at] = (int8_t)strtol(word, end, 10); break;
    case TF_UINT8: ((uint8_t*)data)[at] = (uint8_t)strtol(word, end, 10); break;
    case TF_BOOL: ((uint8_t*)data)[at] = strtol(word, end, 10) != 0; break;
    default: fail(1, "input", "is of a type that this program does not know");
  }
}

static void print(TF_DataType dtype, const void* data, int64_t at) {
  switch (dtype) {
    case TF_FLOAT: printf("%.9g", ((const float*)data)[at]); break;
    case TF_DOUBLE: printf("%.17g", ((const double*)data)[at]); break;
    case TF_INT64: printf("%" PRId64, ((const int64_t*)data)[at]); break;
    case TF_INT32: printf("%" PRId32, ((const int32_t*)data)[at]); break;
    case TF_INT16: printf("%d", ((const int16_t*)data)[at]); break;
    case TF_INT8: printf("%d", ((const int8_t*)data)[at]); break;
    case TF_UINT8: printf("%d", ((const uint8_t*)data)[at]); break;
    case TF_BOOL: printf("%d", ((const uint8_t*)data)[at] != 0); break;
    default: fail(1, "output", "is of a type that this program does not know");
  }
}

static void describe(const char* title, const Endpoint* endpoints, int count) {
  printf("%s\n", title);
  for (int k = 0; k < count; ++k) {
    printf("  %s [batch", endpoints[k].name);
    for (int axis = 1; axis < endpoints[k].rank; ++axis) printf(", %" PRId64, endpoints[k].dims[axis]);
    printf("] type %d\n", endpoints[k].dtype);
  }
}

/* ---- Requests. ---- */

static TF_Output locate(TF_Graph* graph, const Endpoint* endpoint) {
  TF_Output output = {TF_GraphOperationByName(graph, endpoint->operation), endpoint->index};
  if (!output.oper) fail(1, endpoint->operation, "is not in the graph");
  return output;
}

static TF_Tensor* allocate(const Endpoint* endpoint, int64_t rows) {
  int64_t dims[MAX_RANK];
  memcpy(dims, endpoint->dims, sizeof(dims));
  dims[0] = rows;
  size_t bytes = (size_t)(rows * endpoint->size) * TF_DataTypeSize(endpoint->dtype);
  return TF_AllocateTensor(endpoint->dtype, dims, endpoint->rank, bytes);
}

/* The numbers of one line into row `row` of all inputs. */
static void parse(char* line, const Signature* signature, TF_Tensor** inputs, int64_t row) {
  char* word = line;
  for (int k = 0; k < signature->num_inputs; ++k) {
    const Endpoint* endpoint = &signature->inputs[k];
    for (int64_t at = 0; at < endpoint->size; ++at) {
      char* end = word;
      put(endpoint->dtype, TF_TensorData(inputs[k]), row * endpoint->size + at, word, &end);
      if (end == word) fail(2, endpoint->name, "a number is missing, or is none");
      word = end;
    }
  }
  if (word[strspn(word, " \t\r\n")]) fail(2, "input", "a line has more numbers than the inputs take");
}

int main(int argc, char** argv) {
  if (argc < 2 || argc > 4) fail(2, "usage", "policy MODEL_DIR [SIGNATURE [ROWS]] < numbers");
  const char* wanted = argc > 2 ? argv[2] : "serving_default";
  const int64_t most = argc > 3 ? atoll(argv[3]) : 1;
  if (most < 1) fail(2, "ROWS", "must be at least 1");

  TF_Status* status = TF_NewStatus();
  TF_Graph* graph = TF_NewGraph();
  TF_SessionOptions* options = TF_NewSessionOptions();
  TF_Buffer* meta_graph = TF_NewBuffer();
  const char* tags[] = {"serve"};
  TF_Session* session =
      TF_LoadSessionFromSavedModel(options, NULL, argv[1], tags, 1, graph, meta_graph, status);
  check(status, argv[1]);

  static Signature signature;
  find_signature(meta_graph, wanted, &signature);
  TF_Output inputs[MAX_TENSORS], outputs[MAX_TENSORS];
  for (int k = 0; k < signature.num_inputs; ++k) inputs[k] = locate(graph, &signature.inputs[k]);
  for (int k = 0; k < signature.num_outputs; ++k) outputs[k] = locate(graph, &signature.outputs[k]);

  static char line[MAX_LINE];
  int64_t answered = 0;
  int more = 1;
  while (more) {
    TF_Tensor *given[MAX_TENSORS], *answer[MAX_TENSORS] = {NULL};
    /* The lines of a request are read first: how many there are is a dimension of its tensors. */
    char** lines = calloc((size_t)most, sizeof(char*));
    int64_t rows = 0;
    while (rows < most && (more = fgets(line, sizeof(line), stdin) != NULL)) lines[rows++] = strdup(line);
    if (rows) {
      for (int k = 0; k < signature.num_inputs; ++k) given[k] = allocate(&signature.inputs[k], rows);
      for (int64_t row = 0; row < rows; ++row) parse(lines[row], &signature, given, row);
      TF_SessionRun(session, NULL, inputs, given, signature.num_inputs, outputs, answer, signature.num_outputs,
                    NULL, 0, NULL, status);
      check(status, wanted);
      for (int64_t row = 0; row < rows; ++row) {
        for (int k = 0; k < signature.num_outputs; ++k) {
          const Endpoint* endpoint = &signature.outputs[k];
          printf("%s%s=", k ? " " : "", endpoint->name);
          for (int64_t at = 0; at < endpoint->size; ++at) {
            if (at) putchar(',');
            print(endpoint->dtype, TF_TensorData(answer[k]), row * endpoint->size + at);
          }
        }
        putchar('\n');
        free(lines[row]);
      }
      for (int k = 0; k < signature.num_inputs; ++k) TF_DeleteTensor(given[k]);
      for (int k = 0; k < signature.num_outputs; ++k) TF_DeleteTensor(answer[k]);
      answered += rows;
    }
    free(lines);
  }
  if (!answered) {
    describe("takes", signature.inputs, signature.num_inputs);
    describe("gives", signature.outputs, signature.num_outputs);
  }

  TF_CloseSession(session, status);
  TF_DeleteSession(session, status);
  TF_DeleteBuffer(meta_graph);
  TF_DeleteSessionOptions(options);
  TF_DeleteGraph(graph);
  TF_DeleteStatus(status);
  return 0;
}
