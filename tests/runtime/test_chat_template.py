# ruff: noqa: E501 - templates stand here as their publishers wrote them
from __future__ import annotations

import itertools
import subprocess
import sys

import jinja2
import pytest
import tokenizers
import transformers

from runtime import BundleError, InputError
from runtime.chat_template import ChatTemplate
from runtime.manifest import ChatFacts
from runtime.messages import Message
from tests import mistral

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are"
    " a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message["
    "'role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]["
    "'content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message "
    "in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation "
    "roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != "
    "false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% "
    "set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + "
    "content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token"
    " }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% "
    "set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif "
    "%}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception("
    "'Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == "
    "'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + "
    "role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{"
    "'<start_of_turn>model\n'}}{% endif %}"
)
PHI_3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'"
    "}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == "
    "'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if "
    "add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
QWEN_2_5 = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\n\n# Tools\n\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- message.content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
HELPERS = """
{# Everything that transformers adds to jinja2. #}
    {% for message in messages %}
        {% if message.content == "skip" %}{% continue %}{% endif %}
        {% if message.content == "stop" %}{% break %}{% endif %}
  {{ message | tojson }}
  {{ message.content | tojson(indent=2, sort_keys=true) }}
        {% generation %}
  <{{ message.content }}>
        {% endgeneration %}
    {% endfor %}
{{ strftime_now("%d %b %Y") }}
{{ tools is none }} {{ documents is defined }} {{ bos_token }} {{ unk_token is defined }}
"""
TEMPLATES = {
    "chatml": CHATML,
    "mistral": mistral.CHAT_TEMPLATE,
    "llama-2": LLAMA_2,
    "llama-3": LLAMA_3,
    "gemma": GEMMA,
    "phi-3": PHI_3,
    "qwen-2.5": QWEN_2_5,
    "helpers": HELPERS,
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def conversation(*pairs: tuple[str, str]) -> list[Message]:
    return [Message(role, content) for role, content in pairs]


CONVERSATIONS = [
    conversation(("user", "Hello")),
    conversation(("user", " Hello \n"), ("assistant", 'Hi, <b>you</b> & "me"!\n'), ("user", "Größe 🙂?")),
    conversation(("system", "Be brief."), ("user", "Hello")),
    conversation(("system", "Be\nbrief. "), ("user", "1"), ("assistant", " 2 "), ("user", "skip")),
    conversation(("user", "1"), ("user", "2")),
    conversation(("assistant", "1"), ("user", "stop"), ("user", "after")),
    conversation(("user", "1"), ("assistant", "2")),
]


@pytest.fixture(scope="module")
def reference() -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), **TOKENS
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_rendered_as_transformers_renders(name: str, reference: transformers.PreTrainedTokenizerFast) -> None:
    template = ChatTemplate(ChatFacts(TEMPLATES[name], TOKENS))
    rendered = refused = 0
    for messages, for_answer in itertools.product(CONVERSATIONS, [True, False]):
        records = [{"role": message.role, "content": message.content} for message in messages]
        expected = refusal = None
        try:
            expected = reference.apply_chat_template(
                records, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=for_answer
            )
        except jinja2.TemplateError as error:
            refusal = str(error)
        if refusal is None:
            assert template.render(messages, for_answer=for_answer) == expected
            rendered += 1
        else:
            with pytest.raises(InputError) as caught:
                template.render(messages, for_answer=for_answer)
            assert caught.value.message == f"the model's chat template refuses these messages: {refusal}"
            refused += 1
    assert rendered
    assert bool(refused) == (name in {"mistral", "llama-2", "gemma"})


def test_a_template_refuses_in_its_own_words() -> None:
    with pytest.raises(InputError) as caught:
        ChatTemplate(ChatFacts(GEMMA, TOKENS)).render(CONVERSATIONS[2])

    assert caught.value.message == "the model's chat template refuses these messages: System role not supported"
    assert caught.value.hint == "their roles are `system`, `user`"


def test_a_role_of_which_neither_template_nor_custom_speaks() -> None:
    with pytest.raises(InputError) as caught:
        ChatTemplate(ChatFacts(CHATML, TOKENS)).render(conversation(("user", "1"), ("narrator", "2")))

    assert caught.value.message == ("message 1 has the role `narrator`, which the model's chat template does not name")
    assert caught.value.hint == "the usual roles are `system`, `user`, `assistant`"


def test_a_role_that_the_template_names_is_known() -> None:
    text = ChatTemplate(ChatFacts(QWEN_2_5, TOKENS)).render(conversation(("user", "1"), ("tool", "2")))

    assert "<tool_response>\n2\n</tool_response>" in text


@pytest.mark.parametrize("attack", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"])
def test_a_template_cannot_leave_its_sandbox(attack: str) -> None:
    with pytest.raises(BundleError, match="the chat template does what is not allowed: "):
        ChatTemplate(ChatFacts(attack, {})).render(CONVERSATIONS[0])


def test_a_template_that_jinja_cannot_read() -> None:
    with pytest.raises(BundleError) as caught:
        ChatTemplate(ChatFacts("ok\n{% for %}", {}))

    assert (
        caught.value.message
        == "the chat template cannot be read: Expected an expression, got 'end of statement block' in line 2"
    )


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "it nests too deep, or is too large"),
        (
            "".join(f"{{% for a{number} in [1] %}}" for number in range(30)) + "{% endfor %}" * 30,
            "too many statically nested blocks",
        ),
        ("{{ " + "9" * 5000 + " }}", "Exceeds the limit"),
    ],
)
def test_a_template_that_is_beyond_what_python_reads(template: str, problem: str) -> None:
    with pytest.raises(BundleError) as caught:
        ChatTemplate(ChatFacts(template, {}))

    assert caught.value.message.startswith(f"the chat template cannot be read: {problem}")
    assert caught.value.exit_code == 7


@pytest.mark.parametrize(
    "template", ["{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ messages[0].content|center(10**15) }}"]
)
def test_a_template_without_an_end(template: str) -> None:
    with pytest.raises(BundleError) as caught:
        ChatTemplate(ChatFacts(template, {})).render(CONVERSATIONS[0])

    assert caught.value.message == "the chat template calls itself without an end, or takes all memory"
    assert caught.value.exit_code == 7


def test_a_template_that_writes_half_a_character() -> None:
    with pytest.raises(BundleError) as caught:
        ChatTemplate(ChatFacts(r"{{ 'a\ud800' }}", {})).render(CONVERSATIONS[0])

    assert caught.value.message == (
        "what the chat template writes is not valid Unicode: surrogates not allowed at character 1"
    )
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("template", ["{{ messages[5].content.strip() }}", "{{ 1 + messages }}", "{{ 1 / 0 }}"])
def test_a_template_that_fails_on_these_messages(template: str) -> None:
    with pytest.raises(InputError, match="the model's chat template cannot render these messages: "):
        ChatTemplate(ChatFacts(template, {})).render(CONVERSATIONS[0])


def test_jinja_is_loaded_only_by_who_chats() -> None:
    code = "import sys, runtime, runtime.chat_template; assert 'jinja2' not in sys.modules"

    subprocess.run([sys.executable, "-c", code], check=True)
