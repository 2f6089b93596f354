"""LangChain against the server: a chain that looks up the right one of two documents and has the model answer from it,
streamed, in batches and asynchronously; tools and structured answers."""

import asyncio
import re

import pytest

pytest.importorskip("langchain_openai", reason="its packages need Python 3.11")
from langchain_core.documents import Document  # noqa: E402
from langchain_core.embeddings import Embeddings  # noqa: E402
from langchain_core.output_parsers import StrOutputParser  # noqa: E402
from langchain_core.prompts import ChatPromptTemplate  # noqa: E402
from langchain_core.runnables import RunnablePassthrough  # noqa: E402
from langchain_core.vectorstores import InMemoryVectorStore  # noqa: E402
from langchain_openai import ChatOpenAI, OpenAI  # noqa: E402
from pydantic import BaseModel, Field  # noqa: E402

DOCUMENTS = [Document("Kate lives in Oslo. Otto works as a farmer. The coat costs 25 dollars. Kate likes rice."),
             Document("Max lives in Rome. The museum opens at 9. The bike of Max is blue.")]
QUESTIONS = {"Where does Kate live?": "Oslo", "What does Kate like?": "rice", "How much does the coat cost?": "25",
             "Where does Max live?": "Rome", "When does the museum open?": "9", "What color is the bike of Max?": "blue"}

SHORT = {"extra_body": {"max_reasoning_tokens": 4}, "temperature": 1, "seed": 3, "max_tokens": 400}


class Words(Embeddings):
    """A text as which of the documents' words it has."""

    vocabulary = sorted({word for document in DOCUMENTS for word in re.findall(r"\w+", document.page_content)})

    def embed_query(self, text):
        return [float(word in re.findall(r"\w+", text)) + 1e-3 for word in self.vocabulary]

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


@pytest.fixture(scope="module")
def model(server):
    return ChatOpenAI(base_url=server.url + "/v1", api_key="any", model=server.model, temperature=0, max_tokens=200,
                      max_retries=0)


@pytest.fixture(scope="module")
def chain(model):
    retriever = InMemoryVectorStore.from_documents(DOCUMENTS, Words()).as_retriever(search_kwargs={"k": 1})
    prompt = ChatPromptTemplate.from_template("Passage: {passage}\nQuestion: {question}")
    return ({"passage": retriever | (lambda found: found[0].page_content), "question": RunnablePassthrough()}
            | prompt | model | StrOutputParser())


def test_answers_come_from_the_document_that_was_found(chain):
    answers = dict(zip(QUESTIONS, chain.batch(list(QUESTIONS))))
    right = [question for question, wanted in QUESTIONS.items() if wanted in answers[question]]
    # The demo model reads 92 of 100 passages right; without the passage it cannot know any of these.
    assert len(right) >= len(QUESTIONS) - 1, answers


def test_streamed_and_asynchronous_chains_say_the_same(chain):
    question = next(iter(QUESTIONS))
    whole = chain.invoke(question)
    parts = list(chain.stream(question))
    assert "".join(parts) == whole and len(parts) > 1

    async def ask():
        return await asyncio.gather(*(chain.ainvoke(question) for _ in range(4)))
    assert asyncio.run(ask()) == [whole] * 4


def test_usage_and_finish_reason(model):
    answer = model.invoke("What is 47 + 38?")
    assert answer.usage_metadata["input_tokens"] > 0
    assert answer.usage_metadata["output_token_details"]["reasoning"] > 0
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    *_, last = (chunk for chunk in model.stream("What is 47 + 38?", stream_usage=True) if chunk.usage_metadata)
    assert last.usage_metadata["output_tokens"] == answer.usage_metadata["output_tokens"]


class Weather(BaseModel):
    """The weather of a city."""

    city: str = Field(max_length=10)
    unit: str = Field(pattern="^[CF]$")


def test_tools(model):
    bound = model.bind_tools([Weather], tool_choice="any", parallel_tool_calls=False).bind(**SHORT)
    call, = bound.invoke("What is 47 + 38?").tool_calls
    assert call["name"] == "Weather" and set(call["args"]) == {"city", "unit"}


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(model, method):
    class Answer(BaseModel):
        number: int = Field(ge=0, le=999)
        certain: bool

    bound = model.with_structured_output(Answer, method=method).bind(**SHORT)
    assert isinstance(bound.invoke("What is 47 + 38?"), Answer)


def test_plain_completions(server):
    model = OpenAI(base_url=server.url + "/v1", api_key="any", model=server.model, temperature=0, max_tokens=12)
    assert model.invoke("2, 4, 6,") == "".join(model.stream("2, 4, 6,"))
